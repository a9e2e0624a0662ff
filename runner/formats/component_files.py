"""Which files of a pipeline's folders are which, by their names: weights, their variants and parts, the rest.

Source: diffusers' saving conventions (src/diffusers/utils/constants.py, pipelines/pipeline_loading_utils.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from runner.errors import InputError, nearest, quote

INDEX = "model_index.json"
CONFIG = "config.json"

# Files without weights that are copied to the output; never code, never pickles.
_CARRIED = re.compile(r"[\w.-]+\.json|merges\.txt|vocab\.txt|[\w-]+\.model", re.ASCII)
# Weight files: STEM[.VARIANT].SUFFIX, and the index of a sharded one. Pickles are the second choice.
SUFFIXES = ("safetensors", "bin")
_STEM, _VARIANT = r"(diffusion_pytorch_model|pytorch_model|model)", r"(\.(?P<variant>[\w-]+))?"
_WEIGHTS = re.compile(rf"{_STEM}{_VARIANT}\.(?P<suffix>{'|'.join(SUFFIXES)})", re.ASCII)
_SHARD_INDEX = re.compile(rf"{_STEM}\.(?P<suffix>{'|'.join(SUFFIXES)})\.index{_VARIANT}\.json", re.ASCII)
_PART = re.compile(
    rf"{_STEM}{_VARIANT}-\d{{5}}-of-\d{{5}}(\.(?P<last>[\w-]+))?\.(?P<suffix>{'|'.join(SUFFIXES)})", re.ASCII
)
_SHARD = re.compile(r".+-\d{5}-of-\d{5}(\.[\w-]+)?\.\w+", re.ASCII)


def is_model_folder(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is a pipeline, or a component of one by itself."""
    return INDEX in names or (CONFIG in names and bool(files_of(names).variants))


def is_shard(name: str) -> bool:
    """Whether a file is a part of a model, by its name."""
    return _SHARD.fullmatch(name) is not None


@dataclass
class Files:
    """The files of a component by what they are.

    Attributes:
        others: those without weights.
        singles, indices: by suffix and variant, the file of all weights, and the index of a sharded one.
    """

    others: list[str]
    singles: Mapping[str, Mapping[str | None, str]]
    indices: Mapping[str, Mapping[str | None, str]]

    def of(self, suffix: str) -> dict[str | None, str]:
        """The file to begin with, by variant."""
        return {**self.indices[suffix], **self.singles[suffix]}

    @property
    def variants(self) -> set[str | None]:
        """All there are; None: the plain files."""
        return {variant for suffix in SUFFIXES for variant in self.of(suffix)}

    def suffix(self, variant: str | None) -> str:
        """The kind of file in which a variant is read: pickles only where there is nothing better."""
        return next(suffix for suffix in SUFFIXES if variant in self.of(suffix))


def files_of(names: Iterable[str]) -> Files:
    """The files of a component by their names."""
    singles: dict[str, dict[str | None, str]] = {suffix: {} for suffix in SUFFIXES}
    indices: dict[str, dict[str | None, str]] = {suffix: {} for suffix in SUFFIXES}
    others = []
    for name in names:
        if match := _WEIGHTS.fullmatch(name):
            if not _SHARD.fullmatch(name):
                singles[match["suffix"]][match["variant"]] = name
        elif match := _SHARD_INDEX.fullmatch(name):
            indices[match["suffix"]][match["variant"]] = name
        elif _CARRIED.fullmatch(name) and not name.endswith(".index.json"):
            others.append(name)
    return Files(others, singles, indices)


def wanted_files(
    component: str, names: Iterable[str], variant: str | None, error: Callable[[str, str], InputError]
) -> list[str]:
    """Of the files of a component those that are read: none of other variants, no second copy of weights.

    Args:
        component: its name.
        names: of all its files.
        variant: the wanted one; None for the plain files.
        error: makes the error if it cannot be told which, from where and why.
    """
    names = sorted(names)
    files = files_of(names)
    if not files.variants:
        return files.others
    chosen = choose_variant(error, component, files.variants, variant)
    suffix = files.suffix(chosen)
    if chosen not in files.indices[suffix]:
        return [*files.others, files.singles[suffix][chosen]]
    shards = [
        name
        for name in names
        if (match := _PART.fullmatch(name))
        and match["suffix"] == suffix
        and (match["variant"] or match["last"]) == chosen
    ]
    return [*files.others, files.indices[suffix][chosen], *shards]


def choose_variant(
    error_of: Callable[[str, str], InputError],
    component: str,
    variants: set[str | None],
    wanted: str | None,
) -> str | None:
    """The variant to read: the wanted one, else the plain files, else the only one there is."""
    known = sorted(name for name in variants if name)
    if wanted is not None:
        if wanted not in variants and not (None in variants and not known):
            there_are = f"{nearest(wanted, known)} (there are: {', '.join(known)})"
            raise error_of(component, f"no variant {quote(wanted)}{there_are}")
        return wanted if wanted in variants else None
    if None in variants:
        return None
    if len(known) == 1:
        return known[0]
    error = error_of(component, f"several variants and no plain weights: {', '.join(known)}")
    error.hint = "say which: {source: ..., variant: " + known[0] + "}"
    raise error
