"""README.md of a result: the card that people and model hubs read, from the recipe and the inputs alone.

Names and licences in it come from strangers: everywhere but in fenced code they are escaped as Markdown, so
they are shown and never read as markup, links or HTML.
Source: the fields of a card's front matter, Hugging Face hub documentation, "Model Cards".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.errors import InputError, escape
from runner.family import family_tree
from runner.imports import own
from runner.imports.recipe_text import recipe_text
from runner.planning.plan import Plan
from runner.provenance.ancestry import inputs, result_license
from runner.recipe.canonical import canonical_json, canonical_recipe
from runner.tables import size

_HUB = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[\w.-]+)", re.ASCII)  # ORG/NAME; a revision or file may follow
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]{1,39}", re.ASCII)  # as the hub names licences
_MARKUP = re.compile(r"[\\`*_{}\[\]()<>#+\-.!|~&@:$^=]")  # and what makes links, emoji and formulas


def card(plan: Plan, digests: list[str], entries: Mapping[str, str]) -> bytes:
    """The text of README.md.

    Args:
        plan: of the merge.
        digests: of the inputs.
        entries: of the output's header; the family tree is drawn from them.
    """
    recipe = plan.resolved.recipe
    models = inputs(plan.resolved, digests)
    yaml = _recipe(plan, models)
    sections = [
        _front_matter(plan, models, result_license(plan.resolved)),
        f"# {inline(recipe.output.name, 200)}",
        inline(recipe.description, 4096) if recipe.description else "",
        f"A merge of {len(models)} models by `{plan.resolved.merge.method.label}`, made with `runner`.",
        "## Models",
        _table(models),
        "## Family tree",
        fenced([recipe.output.name, *family_tree(entries)], "text"),
        "## Recipe",
        fenced(yaml.splitlines(), "yaml"),
        "## To make it again",
        _again(plan),
    ]
    return ("\n\n".join(section for section in sections if section) + "\n").encode()


def inline(text: str, limit: int = 120) -> str:
    """A text on one line of Markdown that is shown as it is."""
    line = " ".join(text[:limit].split())
    shown = "".join(escape(line[at : at + 100]) for at in range(0, len(line), 100))  # it cuts longer ones
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    return _MARKUP.sub(lambda match: entities.get(match[0], f"\\{match[0]}"), shown)


def fenced(lines: Iterable[str], language: str) -> str:
    """Lines as code, in a fence that none of them ends."""
    body = "\n".join(lines)
    longest = max(map(len, re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def _front_matter(plan: Plan, models: Sequence[Mapping[str, Any]], licence: str) -> str:
    """YAML whose texts are JSON, which YAML reads as the same texts."""
    lines = ["---"]
    if _IDENTIFIER.fullmatch(licence):
        lines.append(f"license: {json.dumps(licence)}")
    elif licence:
        slug = "-".join(re.findall(r"[a-z0-9.]+", licence.lower()))[:60]
        lines += ["license: other", f"license_name: {json.dumps(slug or 'unnamed')}"]
    bases = dict.fromkeys(match[1] for one in models if (match := _HUB.match(one["name"])))
    if bases:
        lines += ["base_model:", *(f"  - {json.dumps(base)}" for base in bases), "base_model_relation: merge"]
    if plan.layout.folder:
        lines.append("library_name: diffusers")
    lines += ["tags:", "  - merge", *(["  - lora"] if plan.resolved.output_format == "lora" else []), "---"]
    return "\n".join(lines)


def _table(models: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| Role | Model | Architecture | Size | Licence | SHA-256 |", "|---|---|---|---|---|---|"]
    for one in models:
        cells = [
            inline(", ".join(one["roles"])),
            inline(one["name"], 300),
            inline(one["architecture"] or "unknown"),
            size(one["bytes"]),
            inline(one.get("license", "–"), 300),
            f"`{one['sha256']}`",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _recipe(plan: Plan, models: Sequence[Mapping[str, Any]]) -> str:
    """The recipe as YAML that can be run; as JSON, which YAML can read, if it nests too deep for that."""
    recipe = canonical_recipe(plan.resolved.recipe)
    by_role = {role: one["sha256"] for one in models for role in one["roles"]}
    try:
        text = recipe_text(own.read(recipe, "recipe", by_role), "recipe")
    except InputError:
        return canonical_json(recipe)
    return "\n".join(line for line in text.splitlines() if line and not line.startswith("#"))


def _again(plan: Plan) -> str:
    name = plan.resolved.recipe.output.name
    promise = {
        "exact": "The result has the same bytes on every machine.",
        "stable": "The result has the same bytes with the same build of torch on the same kind of processor.",
        "machine": "The result has the same bytes on the same machine with the same versions.",
    }
    where = "Put the models in one folder, the recipe above in a file beside it, and run"
    command = f"runner recipe=$PWD/{name}.yaml models_dir=FOLDER"
    where_digests = "`runner` refuses a model whose digest is not the one in the recipe."
    return f"{where}\n\n{fenced([command], 'sh')}\n\n{where_digests} {promise[plan.determinism]}"
