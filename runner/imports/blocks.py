"""Block weights of other tools as recipes have them: {mbw: ..., dialect: ..., elemental: ...}."""

from __future__ import annotations

import re
from collections.abc import Sequence

from runner.errors import quote
from runner.imports.imported import Notes, Tree, plain

SD1 = ("BASE", *(f"IN{n:02d}" for n in range(12)), "M00", *(f"OUT{n:02d}" for n in range(12)))
SDXL = ("BASE", *(f"IN{n:02d}" for n in range(9)), "M00", *(f"OUT{n:02d}" for n in range(9)))
WITH_BASE = (26, 20, 61, 110)
# Values without BASE, by count. SDXL's twentieth is one for the VAE that no tool uses.
_COUNTS = (25, 19, 20, 60, 109)
_ALIASES = {"M": "M00", "MID": "M00"}
_ENTRY = re.compile(
    r"(?P<blocks>[^:]*):(?P<elements>[^:]*):\s*(?P<ratio>[-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*", re.ASCII
)
_WORDS = re.compile(r"[\w.\- ]{0,400}", re.ASCII)
MAX_ENTRIES = 500


def block_weights(
    values: Sequence[float], base: float | None, dialect: str, part: str, notes: Notes
) -> Tree | None:
    """A number for each block, as a recipe gives it; None, and noted, if the count fits no model.

    Args:
        values: of the blocks; with BASE first if base is None or there is one more than blocks.
        base: the number of BASE, if it is recorded apart.
        dialect: the tool whose map of blocks to keys is meant.
        part: of the original, for notes.
        notes: where it is noted.
    """
    found = list(values)
    if base is not None and len(found) in _COUNTS:
        found = [base, *found[: 19 if len(found) == 20 else None]]
    if len(found) not in WITH_BASE:
        notes.refused(
            part, f"{len(found)} values; expected one for each block, 26 for SD1 and SD2, 20 for SDXL"
        )
        return None
    notes.exact(part, f"{len(found)} block weights, dialect {dialect}")
    return {"mbw": ",".join(map(plain, found)), "dialect": dialect}


def elemental(entries: Sequence[str], shifted: bool, notes: Notes) -> str:
    """Entries of the form blocks:elements:ratio as one text; what cannot be said is noted.

    Args:
        entries: as recorded.
        shifted: whether names meant other blocks: on SDXL supermerger looks them up in SD1's list,
            where the eleventh name is IN09 and not M00.
        notes: where it is noted.
    """
    said = []
    for entry in entries[:MAX_ENTRIES]:
        match = _ENTRY.fullmatch(entry)
        blocks = match["blocks"].strip() if match else ""
        if match is None or not _WORDS.fullmatch(blocks) or not _WORDS.fullmatch(match["elements"]):
            notes.refused("elemental", f"{quote(entry)}: expected BLOCKS:ELEMENTS:NUMBER")
            continue
        if shifted and blocks:
            moved = _shifted(blocks)
            if moved is None:
                notes.exact("elemental", f"{quote(entry)} selects nothing on SDXL")
                continue
            if moved != blocks:
                notes.exact("elemental", f"{quote(blocks)} meant {quote(moved)} on SDXL")
            blocks = moved
        said.append(f"{blocks}:{match['elements'].strip()}:{match['ratio']}")
    if len(entries) > MAX_ENTRIES:
        notes.refused("elemental", f"{len(entries)} entries; the first {MAX_ENTRIES} are taken")
    return ", ".join(said)


def _shifted(blocks: str) -> str | None:
    """The blocks that SD1's names meant on SDXL; None if they meant none."""
    words = blocks.split()
    inverted = words[:1] == ["NOT"]
    names: list[str] = []
    for word in words[inverted:]:
        first, _, last = word.partition("-")
        ends = [_ALIASES.get(end, end) for end in (first, last or first)]
        if any(end not in SD1 for end in ends):
            names.append(word)  # not one of the shifted
            continue
        begin, end = (SD1.index(end) for end in ends)
        names += [SDXL[at] for at in range(begin, end + 1) if at < len(SDXL)]
    if not names:
        return "" if inverted else None
    return " ".join(["NOT"] * inverted + names)
