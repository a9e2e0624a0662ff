"""References of a recipe to its own values, ${.sibling} and ${recipe.path}: resolved once, no resolver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runner.errors import KeyPath, Location, RecipeError, escape, quote
from runner.recipe.guard import REFERENCE, forbidden_reference

MAX_REFERENCES = 100


class References:
    """Replaces ${.sibling} and ${recipe.path}, once: what is referred to is a scalar without ${ itself."""

    def __init__(self, tree: Any, locate: Callable[[KeyPath], Location]) -> None:
        self.tree = tree
        self.locate = locate
        self.count = 0
        self.problems: list[str] = []

    def resolved(self) -> dict[str, Any]:
        """The tree with every reference replaced.

        Raises:
            RecipeError: with every reference that leads to no plain value, or too many of them.
        """
        result = self._walk(self.tree, ())
        if self.count > MAX_REFERENCES:
            self.problems.append(f"{self.count} references ${{...}}; at most {MAX_REFERENCES}")
        if self.problems:
            raise RecipeError("\n".join(self.problems))
        assert isinstance(result, dict)
        return result

    def _walk(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {str(key): self._walk(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [self._walk(item, (*path, at)) for at, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        if forbidden_reference(value):
            return self._refuse(path, f"${{ is only for plain references; found {quote(value)}")
        whole = REFERENCE.fullmatch(value)
        if whole:
            return self._target(whole["path"], path)
        return REFERENCE.sub(lambda match: str(self._target(match["path"], path)), value)

    def _target(self, reference: str, path: KeyPath) -> Any:
        self.count += 1
        inner = reference.lstrip(".")
        dots = len(reference) - len(inner)
        parts: list[str | int] = list(inner.split("."))
        if dots > len(path):
            return self._refuse(path, f"${{{reference}}}: more dots than there are levels")
        if dots:
            parts = [*path[: len(path) - dots], *parts]
        elif parts[0] != "recipe":
            return self._refuse(path, f"${{{reference}}}: a reference starts with recipe. or a dot")
        else:
            parts = parts[1:]
        found: Any = self.tree
        for part in parts:
            found = found.get(part) if isinstance(found, dict) else None
        if found is None or isinstance(found, (dict, list)) or (isinstance(found, str) and "${" in found):
            return self._refuse(path, f"${{{reference}}}: refers to no plain value")
        return found

    def _refuse(self, path: KeyPath, message: str) -> None:
        key = escape(".".join(map(str, path)))
        self.problems.append(f"{self.locate(path)}: {key}: {message}")
