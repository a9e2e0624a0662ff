"""sd_merge_recipe and sd_merge_models: what A1111, supermerger and Chattiori leave in the header of a file.

The recipe says how the file was merged; the models say, by SHA-256, what its inputs were called and,
if they were merged themselves, how. An input whose own recipe is there becomes a nested merge.
Source: metadata written by AUTOMATIC1111 stable-diffusion-webui, modules/extras.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.errors import quote
from runner.imports.imported import (
    MAX_MERGES,
    MAX_NESTED,
    Notes,
    Present,
    Tree,
    file_name,
    source,
)
from runner.recipe.structure import SHA256
from runner.stated import Record, mapping

_SLOTS = (("a", "primary"), ("b", "secondary"), ("c", "tertiary"))


@dataclass
class History:
    """The models a record names, and the way from a record to a recipe.

    Attributes:
        models: sd_merge_models.
        readers: the importer of each `type` of record.
        present: whether a model of this name is there; then its own recipe is not asked for.
        notes: where it is noted what became of what.
    """

    models: Mapping[str, Any]
    readers: Mapping[str, Callable[[Record, History], Tree | None]]
    present: Present
    notes: Notes
    _above: list[str] = field(default_factory=list)
    _made: int = 0

    @property
    def nested(self) -> bool:
        """Whether the record that is read is one of an ancestor's."""
        return bool(self._above)

    def merge(self, record: Record) -> Tree | None:
        """The merge a record describes; None, and noted, if there is none."""
        self._made += 1
        kind = record.get("type")
        if not isinstance(kind, str) or kind not in self.readers:
            self.notes.refused("type", f"{quote(kind)} is no record that can be read")
            return None
        return self.readers[kind](record, self)

    def roles(self, record: Record, count: int) -> Tree | None:
        """The first `count` models a record names, by role; None, and noted, if one is not recorded."""
        models: Tree = {}
        for role, slot in _SLOTS[:count]:
            model = self.model(record.get(f"{slot}_model_hash"), f"{slot}_model_hash")
            if model is None:
                return None
            models[role] = model
        return models

    def model(self, digest: object, part: str) -> Tree | None:
        """The model of that digest, a file or the merge it was made by; None, and noted, without one."""
        if not isinstance(digest, str) or not digest.strip():
            self.notes.refused(part, "the model is not recorded")
            return None
        entry = self.models.get(digest)
        entry = entry if isinstance(entry, Mapping) else {}
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            self.notes.approximate(
                part, f"the name of {quote(digest[:10])} is not recorded; write the name of its file"
            )
            name = f"{file_name(digest[:10])}.safetensors"
        if not SHA256.fullmatch(digest.lower()):
            self.notes.approximate(part, f"{quote(name)}: {quote(digest)} is no SHA-256; not compared")
        return self._ancestor(digest, name, entry.get("sd_merge_recipe")) or source(name, digest)

    def _ancestor(self, digest: str, name: str, recorded: object) -> Tree | None:
        """The merge by which an input was made, if that is recorded and the input is not there."""
        if recorded is None or self.present(file_name(name)):
            return None
        if digest in self._above:
            self.notes.refused(file_name(name), "its own recipe leads back to it; named as a file")
            return None
        if len(self._above) >= MAX_NESTED or self._made >= MAX_MERGES:
            self.notes.approximate(
                file_name(name), "merged from others too, but that is too deep; named as a file"
            )
            return None
        record = mapping(recorded)
        if record is None:
            self.notes.refused(file_name(name), "its own recipe cannot be read; named as a file")
            return None
        self._above.append(digest)
        try:
            tree = self.merge(record)
        finally:
            self._above.pop()
        if tree is None:
            return None
        self.notes.approximate(
            file_name(name),
            "expanded to the merge it was made by; the file itself was rounded to its dtype in between",
        )
        tree.pop("output", None)  # only the whole recipe has one
        return tree
