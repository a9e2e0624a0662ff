"""The settings of programs that keep models: small YAML files, written by whoever set them up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from runner.disk.files import read_small
from runner.errors import InputError, escape

MAX_BYTES = 1 << 16


def read_settings(path: Path, expected: str) -> Mapping[Any, Any]:
    """The settings in a file; none if it is empty.

    Args:
        path: of the file.
        expected: what they should be, for the message.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    label = path.name
    content = read_small(path, label, MAX_BYTES)
    try:
        tree = yaml.safe_load(content.decode())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{escape(label)}: not YAML: {escape(reason)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise InputError(f"{escape(label)}: expected {expected}, found {type(tree).__name__}")
    return tree
