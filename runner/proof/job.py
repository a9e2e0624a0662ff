"""The three jobs: what is asked, the answer for people or programs, and the exit code."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.config import Settings
from runner.errors import CannotReplayError, MismatchError, UsageError, clip, escape
from runner.progress import progress, say
from runner.proof import compare as comparing
from runner.proof.difference import EQUIVALENT, IDENTICAL
from runner.proof.finding import Finder, wanted
from runner.proof.places import places_of
from runner.proof.replay import CANNOT, Replay, recipe_of, replay
from runner.proof.verify import (
    MISMATCH,
    UNPROVEN,
    WRONG,
    Verification,
    inputs_found,
    total_bytes,
    verify,
    verify_signature,
)
from runner.signing import checking_key
from runner.tables import table

SCHEMA = 1


def verify_job(settings: Settings) -> dict[str, Any]:
    """Says whether a result is what was written about it.

    Raises:
        MismatchError: it is not; or a proof is asked for and there is none.
        InputError: there is no such model, or it cannot be read.
    """
    job = settings.job
    public = checking_key(job.key) if job.key else None
    places = places_of(_source(settings), settings.output_dir)
    total = total_bytes(places.model) if places.model and places.model.exists() else 0
    with progress(total, "verify", settings.progress) as advance:
        found = verify(places, advance)
    if places.model:
        verify_signature(places.model, public, found)
    if job.inputs:
        _verify_inputs(found, settings)
    word = found.word
    code = 10 if word == MISMATCH or (word == UNPROVEN and job.proof) else 0
    answer = {
        "schema": SCHEMA,
        "job": "verify",
        "word": word,
        "exit_code": code,
        "model": places.model.name if places.model else None,
        "sha256": found.sha256,
        "witnesses": found.witnesses,
        "first_tensor": found.first,
        "findings": [{"part": f.part, "verdict": f.verdict.lower(), "text": f.text} for f in found.findings],
    }
    say(json.dumps(answer, indent=1, ensure_ascii=False) if job.json else _told(places.model, found))
    if code:
        raise MismatchError(clip(f"{word}: {_reason(found)}"), tag=word)
    return {"word": word, "sha256": found.sha256}


def _reason(found: Verification) -> str:
    """Why a model is not proven."""
    wrong = [one for one in found.findings if one.verdict == WRONG]
    if not wrong and not found.witnesses:
        return "no .tensors.json, run.json, statement or signature (job.key=) vouches for it"
    first = (wrong or found.lacking)[0]
    return f"{first.part}: {first.text}"


def _source(settings: Settings) -> Path:
    assert settings.job.source is not None  # the caller has seen to it
    return settings.job.source


def _verify_inputs(found: Verification, settings: Settings) -> None:
    said = found.inputs
    if said is None or not said.inputs:
        raise UsageError("job.inputs: nothing says what this model was merged from")
    recipe = None
    with suppress(CannotReplayError):  # what cannot be done again can still be asked for
        recipe = recipe_of(said)
    total = sum(one.nbytes or 0 for one in said.inputs)
    with progress(total, "inputs", settings.progress) as advance:
        finder = Finder(settings.library, settings.offline, settings.threads or 1, advance)
        found.findings += inputs_found(finder.find(wanted(said, recipe)))


def _told(model: Path | None, found: Verification) -> str:
    rows = [[f.verdict, escape(f.part), f.text] for f in found.findings]
    head = f"{found.word}: {escape(str(model))}"
    digest = [f"  sha256 {found.sha256}"] if found.sha256 else []
    return "\n".join([head, *digest, *map(clip, table(rows))])


def replay_job(settings: Settings, folder: Path) -> dict[str, Any]:
    """Does a recorded merge again and says whether the bytes are the same.

    Args:
        settings: what is replayed, and how.
        folder: of the run: the model is built there unless output_dir says where.

    Raises:
        MismatchError: they are not.
        CannotReplayError: an input or a method is not there.
    """
    job = settings.job
    places = places_of(_source(settings), settings.output_dir)
    try:
        found = replay(places, settings, settings.output_dir or folder)
    except CannotReplayError as error:
        if job.json:
            reasons = error.message.split("\n")
            say(json.dumps(_replayed(CANNOT, error.exit_code, None, reasons), indent=1, ensure_ascii=False))
        raise
    accepted = found.word == EQUIVALENT and (found.difference.most if found.difference else None)
    fine = found.word == IDENTICAL or (type(accepted) is int and accepted <= job.ulps)
    code = 0 if fine else 10
    if job.json:
        say(json.dumps(_replayed(found.word, code, found, found.reasons), indent=1, ensure_ascii=False))
    else:
        say("\n".join([_head(found), *(clip(f"  {line}") for line in found.reasons)]))
    if code:
        raise MismatchError(
            clip(f"{found.word}: {found.reasons[0] if found.reasons else ''}"), tag=found.word
        )
    return {"word": found.word, "sha256": found.sha256}


def _head(found: Replay) -> str:
    head = f"{found.word}: {escape(found.recorded.name or found.recorded.label)}"
    if found.word == EQUIVALENT and found.difference:
        head += f", {len(found.difference.tensors)} tensors differ by at most {found.difference.most} ulp"
    digest = f"\n  sha256 {found.sha256}" if found.sha256 else ""
    return head + digest + (f"\n  kept: {found.kept}" if found.kept else "")


def _replayed(word: str, code: int, found: Replay | None, reasons: Any) -> dict[str, Any]:
    apart = found.difference if found else None
    return {
        "schema": SCHEMA,
        "job": "replay",
        "word": word,
        "exit_code": code,
        "sha256": found.sha256 if found else None,
        "tensors": len(apart.tensors) if apart and apart.known else None,
        "first_tensor": apart.tensors[0] if apart and apart.tensors else None,
        "ulps": apart.most if apart else None,
        "kept": found.kept is not None if found else False,
        "reasons": list(reasons),
    }


def compare_job(settings: Settings) -> dict[str, Any]:
    """Says what changed from one run to another.

    Raises:
        UsageError: one of them is not given.
        InputError: one of them cannot be read.
    """
    job = settings.job
    if job.a is None or job.b is None:
        hint = "python -m runner job=compare job.a=RUN job.b=RUN"
        raise UsageError(f"job.{'a' if job.a is None else 'b'} is missing", hint=hint)
    first, second = (comparing.run_of(places_of(path, settings.output_dir)) for path in (job.a, job.b))
    if job.json:
        tensors = comparing.tensor_changes(first, second)
        answer = {
            "schema": SCHEMA,
            "job": "compare",
            "recipe": comparing.recipe_changes(first, second),
            "inputs": comparing.input_changes(first, second),
            "environment": comparing.environment(first, second),
            "settings": comparing.setting_changes(first, second),
            "tensors": {"differ": tensors[0], "all": tensors[1], "first": tensors[2]} if tensors else None,
        }
        say(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        lines = comparing.head(first, second)
        for name, content in comparing.sections(first, second, settings) or [("nothing changed", [])]:
            lines += ["", name, *content]
        say("\n".join(lines))
    return {}
