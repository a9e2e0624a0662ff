"""job=models and job=find: the models there are as a list, and the digests of their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from runner.architectures import ARCHITECTURES
from runner.config import Settings
from runner.digests import InputDigests
from runner.disk.cachefile import DIGESTS
from runner.disk.files import InputFile
from runner.errors import RunnerError, counted, escape
from runner.library.facts import BROKEN
from runner.library.headers import Entry, with_digest
from runner.library.lookup import Library
from runner.library.roots import Root
from runner.library.walk import Found, models_in
from runner.place import processors
from runner.progress import progress, say
from runner.tables import size, table, width_of

_HEAD = ("name", "kind", "architecture", "format", "dtype", "size", "sha256", "in")
_SIZE = _HEAD.index("size")
_DIGITS = 10  # of a digest in the list: what A1111 and Civitai show
_NO_TERMINAL = 100_000  # columns: what is piped has a line for each model


def list_models(settings: Settings) -> dict[str, Any]:
    """Prints the models there are."""
    library, found, problems = _found(settings)
    entries = _entries(found, library, settings)
    if settings.digest_memory is None:  # what is remembered is not to be trusted, and a list reads no data
        entries = [with_digest(entry, {}) for entry in entries]
    if settings.job.json:
        say(json.dumps({"models": list(map(_record, entries)), "problems": problems}, indent=1))
    else:
        say(
            "\n".join(
                _lines(entries, library, problems, shutil.get_terminal_size((_NO_TERMINAL, 24)).columns)
            )
        )
    return {"models": len(entries)}


def find_digests(settings: Settings) -> dict[str, Any]:
    """Computes and remembers the digests of the models there are, and says which are the same."""
    library, found, problems = _found(settings)
    entries = [entry for entry in _entries(found, library, settings) if entry.facts.kind != BROKEN]
    files = list({file.identity: file for entry in entries for file in _files(entry)}.values())
    memory, trusted = settings.cache_dir / DIGESTS, settings.digests == "remember"
    known = dict(library.digests) if trusted else {}
    left = [file for file in files if file.identity.key not in known]
    nbytes = sum(file.identity.size for file in left)
    done = 0
    if left:
        with (
            progress(nbytes, "sha256", settings.progress) as advance,
            InputDigests(
                left, memory, settings.threads or min(4, processors()), trusted=False, advance=advance
            ) as digests,
        ):
            for file, outcome in digests.finished():
                if isinstance(outcome, RunnerError):
                    problems.append(outcome.message)
                else:
                    known[file.identity.key] = outcome
                    done += 1
    unsettled = len(left) - done
    lines = [
        f"{counted(len(entries), 'model')}, {counted(len(files), 'file')}: {done} hashed ({size(nbytes)}), "
        f"{len(files) - len(left)} known before" + (f", {unsettled} failed" if unsettled else "")
    ]
    lines += _same(with_digest(entry, known) for entry in entries)
    say("\n".join([*lines, *_section("problems", problems)]))
    return {"files": len(files), "hashed": done}


def _found(settings: Settings) -> tuple[Library, list[Found], list[str]]:
    library = settings.library
    found, problems = models_in(library.roots)
    if settings.job.match is not None:
        found = [one for one in found if _matches(one, settings.job.match)]
    return library, found, problems


def _matches(one: Found, pattern: str) -> bool:
    texts = (one.name, one.path.name, one.inside)
    return any(fnmatchcase(text.casefold(), pattern.casefold()) for text in texts)


def _entries(found: Sequence[Found], library: Library, settings: Settings) -> list[Entry]:
    with progress(len(found), "headers", settings.progress, "models") as advance:
        return library.entries(found, advance, settings.workers)


def _files(entry: Entry) -> Iterable[InputFile]:
    """The weight files of a model."""
    for name, identity in entry.weights.items():
        path = entry.found.path / name if name else entry.found.path
        yield InputFile(path, f"{entry.found.inside}/{name}" if name else entry.found.inside, identity)


def _same(entries: Iterable[Entry]) -> list[str]:
    """Models that are there more than once."""
    by_digest: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.sha256:
            by_digest.setdefault(entry.sha256, []).append(entry)
    several = [same for same in by_digest.values() if len({entry.found.path for entry in same}) > 1]
    lines = ["the same model in several places"] if several else []
    for same in several:
        lines.append(f"  {(same[0].sha256 or '')[:_DIGITS]}")
        lines += [f"    {escape(str(entry.found.path))}" for entry in same]
    return lines


def _record(entry: Entry) -> dict[str, Any]:
    """A model for programs."""
    found, facts = entry.found, asdict(entry.facts)
    return {
        "name": found.name,
        "path": str(found.path.absolute()),
        "place": found.root.title,
        **{name: facts[name] for name in ("kind", "architecture", "variant", "format", "dtypes")},
        "bytes": entry.facts.nbytes,
        "sha256": entry.sha256,
        "problem": entry.facts.problem,
    }


def _lines(entries: Sequence[Entry], library: Library, problems: Sequence[str], columns: int) -> list[str]:
    """The list: for each place a table, or where that is too wide three lines for each model."""
    lines: list[str] = []
    for root in library.roots:
        here = [entry for entry in entries if entry.found.root == root and entry.facts.kind != BROKEN]
        if here:
            lines += ["", _title(root), *_table(sorted(here, key=_order), columns)]
    broken = [entry for entry in entries if entry.facts.kind == BROKEN]
    lines += _section("cannot be read", [entry.facts.problem or "" for entry in sorted(broken, key=_order)])
    lines += _section(
        "cannot be merged",
        [entry.facts.problem for entry in entries if entry.facts.problem and entry.facts.kind != BROKEN],
    )
    lines += _section("problems", problems)
    if not entries:
        lines = [f"no models in {', '.join(_title(root) for root in library.roots)}", *lines]
    return lines[1:] if lines and not lines[0] else lines


def _order(entry: Entry) -> tuple[str, str]:
    return entry.found.name.casefold(), entry.found.inside


def _title(root: Root) -> str:
    return f"{root.title} {escape(str(root.path))}"


def _section(title: str, problems: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {problem}" for problem in problems)] if problems else []


def _table(entries: Sequence[Entry], columns: int) -> list[str]:
    rows = [_cells(entry) for entry in entries]
    lines = table([list(_HEAD), *rows], right=(_SIZE,))
    if max(map(width_of, lines)) <= columns:
        return lines
    lines = []
    for name, kind, architecture, stored, dtype, nbytes, digest, folder in rows:
        lines.append(f"  {name}")
        for cells in ((kind, architecture, stored), (dtype, nbytes, digest), (folder,)):
            if any(cells):
                lines.append("    " + "  ".join(filter(None, cells)))
    return lines


def _cells(entry: Entry) -> list[str]:
    found, facts = entry.found, entry.facts
    architecture = ARCHITECTURES[facts.architecture].title if facts.architecture in ARCHITECTURES else ""
    folder = found.inside.rpartition("/")[0] if not found.name.startswith("hf:") else ""
    return [
        escape(found.name),
        facts.kind.replace("_", " "),
        " ".join(filter(None, (architecture, facts.variant))),
        facts.format,
        " ".join(facts.dtypes[:2]) + (" …" if len(facts.dtypes) > 2 else ""),
        size(facts.nbytes),
        (entry.sha256 or "")[:_DIGITS],
        escape(folder),
    ]
