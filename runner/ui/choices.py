"""The models a role can be given, which of them fit there, and why the others do not."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.architectures import ARCHITECTURES
from runner.config import Settings
from runner.demo.models import DEMO_LORA, DEMO_MODELS
from runner.errors import KeyPath
from runner.imports.recipe_text import yaml_text
from runner.library.facts import BROKEN, Facts
from runner.library.headers import remembered
from runner.library.walk import Found
from runner.methods import Method
from runner.recipe.guard import read_text
from runner.tables import size
from runner.ui.draft import Draft

FEW = 50  # models that are read in less time than another process takes to begin
_PARTS = ("vae", "text_encoder", "unet", "transformer")
_WHERE = re.compile(r"^recipe[:\d]*: (?:source: )?| at byte \d+$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that a recipe can name.

    Attributes:
        source: as the recipe names it.
        facts: what it is; None while its headers are not read.
    """

    source: str
    facts: Facts | None

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        if self.facts is None:
            return ""
        if self.facts.kind == BROKEN:
            return "cannot be read"
        kind = self.facts.kind.replace("_", " ")
        words = [_architecture(self.facts), self.facts.variant or "", kind, " ".join(self.facts.dtypes[:1])]
        return ", ".join(filter(None, words)) + (f", {size(self.facts.nbytes)}" if self.facts.nbytes else "")


def demo_choices() -> list[Choice]:
    """The demo models."""
    models = [
        Choice(
            f"demo:{name}", Facts("folder", "sdxl" if name.startswith("sdxl") else "sd1", format="diffusers")
        )
        for name in DEMO_MODELS
    ]
    return [*models, Choice(f"demo:{DEMO_LORA}", Facts("lora", "sd1", format="safetensors"))]


def found_models(settings: Settings) -> list[Found]:
    """The models there are, by their names alone."""
    return settings.library.found


def named(found: Sequence[Found], settings: Settings) -> list[Choice]:
    """Those models as recipes name them, before their headers are read."""
    return [Choice(_source(one, settings.models_dir), None) for one in found]


def reader_of(found: Sequence[Found], settings: Settings) -> list[str] | None:
    """The command that reads the headers of those models and remembers them; None if most are remembered."""
    library = settings.library
    unread = sum(remembered(one, library.facts, {}) is None for one in found)
    if unread <= FEW:
        return None
    words = (settings.workers, settings.cache_dir, *library.folders)
    return [sys.executable, "-m", "runner.library", *map(str, words)]


async def read_apart(command: Sequence[str]) -> None:
    """Waits for a command that says nothing; ends it when it is waited for no longer."""
    nothing = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=nothing, stderr=nothing)
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def looked_at(found: Sequence[Found], settings: Settings) -> list[Choice]:
    """Those models with what their headers say."""
    entries = settings.library.entries(found)
    return [Choice(_source(entry.found, settings.models_dir), entry.facts) for entry in entries]


def _source(found: Found, models_dir: Path) -> str:
    if found.name.startswith("hf:"):
        return found.name
    try:
        return found.path.relative_to(models_dir).as_posix()
    except ValueError:
        return str(found.path.absolute())


def why_no_name(source: str) -> str:
    """Why no recipe can name a model so; "" if one can."""
    if source.isprintable() and "${" not in source:  # nearly all are, and there may be thousands
        return ""
    text = f"source: {yaml_text(source)}\n".encode("utf-8", "surrogatepass")
    problems = read_text(text, "recipe", "recipe").problems
    return f"no recipe can name it: {_WHERE.sub('', problems[0])}" if problems else ""


def primary_facts(draft: Draft, at: KeyPath, known: Mapping[str, Facts]) -> Facts | None:
    """What the first model of a merge is: the others must fit it. None if it is not known."""
    roles = draft.roles(at)
    model: Any = draft.value((*at, "models", roles[0])) if roles else None
    if isinstance(model, Mapping) and "source" not in model:
        return primary_facts(draft, (*at, "models", roles[0]), known)
    source = model["source"] if isinstance(model, Mapping) else model
    return known.get(str(source))


def why_not(facts: Facts | None, method: Method | None, role: str, primary: Facts | None) -> str:
    """Why a model does not fit in a role; "" if it does, as far as headers tell.

    Args:
        facts: of the model; None: not known.
        method: of the merge; None: unknown.
        role: in it.
        primary: the first model of the merge; None: not known, or it is this role.
    """
    if facts is None or method is None:
        return ""
    if facts.problem:
        return facts.problem
    wants_adapters = method.adapters and role not in method.roles
    if wants_adapters != (facts.kind == "lora"):
        return "a file of adapters: add_lora takes it" if facts.kind == "lora" else "no file of adapters"
    if primary is None:
        return f"a {facts.kind.replace('_', ' ')} alone" if facts.kind in _PARTS[:2] else ""
    if facts.architecture != primary.architecture:
        return _of_another(facts, primary)
    if wants_adapters:
        return ""
    if facts.kind in _PARTS and primary.kind not in _PARTS:
        return f"a {facts.kind.replace('_', ' ')} alone: the rest is missing (force: true)"
    if facts.variant != primary.variant:
        return (
            f"{facts.variant or 'plain'}, the first model is {primary.variant or 'plain'} (shapes: channels)"
        )
    return ""


def why_no_component(facts: Facts | None, component: str, primary: Facts | None) -> str:
    """Why a model gives no such component to a result; "" if it does, as far as headers tell.

    Args:
        facts: of the model; None: not known.
        component: of the result: "vae", "text_encoder_2".
        primary: the first model of the recipe; None: not known.
    """
    if facts is None:
        return ""
    if facts.problem or (facts.kind in _PARTS and component.startswith(facts.kind)):
        return facts.problem or ""
    if facts.kind == "lora" or facts.kind in _PARTS:
        return f"a {facts.kind.replace('_', ' ')} has no {component}"
    return _of_another(facts, primary) if primary and facts.architecture != primary.architecture else ""


def _of_another(facts: Facts, primary: Facts) -> str:
    theirs, ours = (_architecture(one) or "unknown architecture" for one in (facts, primary))
    return f"{theirs}, the first model is {ours}"


def _architecture(facts: Facts) -> str:
    found = ARCHITECTURES.get(facts.architecture or "")
    return found.title if found else ""
