"""Texts of a run made fit to be published: without the folders of this machine, and without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
# A path that begins at the root or a home, up to its last part: in quotation marks to their end, else to
# the next character that ends a word. What follows a letter or a dot, "a/b" or "../c", is no such path.
_QUOTED = re.compile(
    r"""(?P<quote>["'])(?:file://)?(?:/|~[\w.-]*/)(?:(?:(?!(?P=quote)).)*/)?(?P<name>(?:(?!(?P=quote)).)*)"""
)
_BARE = re.compile(r"""(?<![\w.…/~\-\\"'])(?:/|~[\w.-]*/)(?![\s/]|$)(?:[^\s"'=,;:()\[\]{}/]*/)*""")
_FILE_URL = re.compile(r"file://+(?:[^\s\"'=,;:()\[\]{}/]*/)*")
_SECRETS = (
    re.compile(r"(?P<kept>\bBearer\s+)\S+", re.IGNORECASE),
    # Tokens by the prefix that their makers give them, so that they can be found in texts.
    re.compile(r"\b(?:hf|sk|ghp|gho|ghs|github_pat|glpat|xoxb|AKIA)[_-]?(?=[\w-]{12,})[\w-]+", re.ASCII),
    re.compile(
        r"(?P<kept>\b\w*(?:token(?!iz)|secret|passw(?:or)?d|api_?key|authorization)\w*\s*[=:]\s*)[^\s,}&]+",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<kept>://)[^/@\s]+(?=@)"),
)


def masked(text: str) -> str:
    """A text with the folders of absolute paths and with secrets left out."""
    for secret in _SECRETS:
        text = secret.sub(lambda found: f"{found.groupdict().get('kept') or ''}{MASK}", text)
    text = _QUOTED.sub(r"\g<quote>…/\g<name>", text)
    text = _FILE_URL.sub("…/", text)
    return _BARE.sub("…/", text)


def all_masked(value: Any) -> Any:
    """The same for every text in a value of lists and mappings, their keys too."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {masked(str(name)): all_masked(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [all_masked(part) for part in value]
    return value
