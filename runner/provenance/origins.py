"""Where a result came from, put into its plan: what the header says and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from runner.checkpoint import CARD, Layout
from runner.disk.files import InputFile
from runner.formats.safetensors import filled
from runner.planning.plan import Plan
from runner.planning.planner import make_plan
from runner.provenance.ancestry import header_entries, input_digests, trace
from runner.provenance.card import card
from runner.provenance.record import header_metadata
from runner.resolve.resolved import Resolved


def plan_with_origins(resolved: Resolved, ranks: Mapping[str, int] | None = None) -> Plan:
    """The plan of a resolved recipe, with room for what is known when the inputs are hashed.

    Args:
        resolved: the recipe.
        ranks: as of make_plan.

    Raises:
        IncompatibleError: keys or shapes do not fit and the recipe has no policy for them.
    """
    ancestry = trace(resolved)
    entries = header_entries(ancestry)
    plan = make_plan(resolved, {**header_metadata(resolved), **entries}, ranks)
    plan = replace(plan, warnings=(*plan.warnings, *ancestry.warnings))
    if not plan.layout.folder:
        return plan
    text = card(plan, input_digests(resolved, None), entries)
    return replace(plan, layout=replace(plan.layout, texts={**plan.layout.texts, CARD: text}))


def layout_with_origins(plan: Plan, digests: Mapping[InputFile, str]) -> tuple[Layout, bytes]:
    """The layout of a plan as it is in the end, and the card, which is part of a folder.

    Args:
        plan: of plan_with_origins.
        digests: of the inputs' weight files.
    """
    ancestry = trace(plan.resolved)
    entries = header_entries(ancestry, digests)
    layout = filled(plan.layout, entries)
    text = card(plan, input_digests(plan.resolved, digests), entries)
    if layout.folder:
        layout = replace(layout, texts={**layout.texts, CARD: text})
    return layout, text
