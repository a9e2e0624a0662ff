"""What run.json, a statement or the header of a model says of a merge, in one form.

Written by strangers: read strictly, and nothing of it is believed before it was compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from runner.checkpoint import RECORD, STATEMENT_SUFFIX
from runner.disk.files import read_small
from runner.errors import InputError, escape, quote
from runner.formats.strict_json import parse_object
from runner.provenance.record import MAX_RECORD_BYTES, SCHEMA
from runner.provenance.statement import STATEMENT
from runner.recipe.canonical import canonical_digest
from runner.recipe.structure import SHA256

STATED, HEADER = "statement", "header"  # and RECORD
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RecordedInput:
    """A model that was read.

    Attributes:
        name: as the recipe names it, without folders.
        roles: where in the recipe it stands: "a", "b.c", "components.vae".
        sha256: its digest.
        nbytes: of its weight files; None: not recorded.
        variant: which weight files of a folder.
        revision: the commit of a model of the hub.
    """

    name: str
    roles: tuple[str, ...]
    sha256: str
    nbytes: int | None = None
    variant: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Recorded:
    """A merge as one text tells of it.

    Attributes:
        label: of the file that says so.
        kind: RECORD, STATED or HEADER.
        recipe: in canonical form.
        stated_digest: what is said to be the digest of the recipe; None: nothing is.
        inputs: the models that were read.
        methods: by the roles that lead to each merge, the method with its version.
        name: of the output's file or folder; None: not recorded.
        files: SHA-256 of each file of the output by its name inside a folder, "" for a single file.
        whole: whether these are all its files; else those with weights.
        content: the whole text of a record or a statement, as it was parsed.
    """

    label: str
    kind: str
    recipe: Mapping[str, Any]
    stated_digest: str | None
    inputs: tuple[RecordedInput, ...]
    methods: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe_digest(self) -> str:
        """SHA-256 of the recipe as it stands there."""
        return canonical_digest(self.recipe)

    @property
    def edited(self) -> bool:
        """Whether the recipe is another than the digest beside it is of."""
        return self.stated_digest not in (None, self.recipe_digest)

    @property
    def by_role(self) -> dict[str, str]:
        """The digest of the model at each place of the recipe."""
        return {role: one.sha256 for one in self.inputs for role in one.roles}


class NewerError(InputError):
    """A record of a newer schema than this program's."""

    default_tag = "NEWER"


def read_text(path: Path, label: str) -> Recorded:
    """What a run.json or a statement says.

    Raises:
        InputError: it is neither, or not what its form asks for. NewerError: of a schema unknown here.
    """
    content = parse_object(read_small(path, label, MAX_RECORD_BYTES), label)
    reader = _Reader(label)
    if content.get("_type") == STATEMENT:
        return reader.statement(content)
    if "deterministic" in content:
        return reader.record(content)
    raise InputError(f"{escape(label)}: expected run.json or a statement ({STATEMENT_SUFFIX})", tag="RECORD")


def of_header(metadata: Mapping[str, str], label: str) -> Recorded | None:
    """What the header of a model says of how it was merged; None if it is no result of ours.

    Raises:
        InputError: it cannot be read.
    """
    if "runner.recipe" not in metadata:
        return None
    recipe = parse_object(metadata["runner.recipe"].encode("utf-8", "replace"), label)
    listed = metadata.get("runner.inputs", "[]")
    inputs = parse_object(f'{{"inputs":{listed}}}'.encode("utf-8", "replace"), label)
    method = metadata.get("runner.method")
    return Recorded(
        label,
        HEADER,
        recipe,
        metadata.get("runner.recipe_sha256"),
        tuple(_Reader(label).inputs(inputs, "name")),
        methods={"": method} if method else {},
    )


@dataclass(frozen=True)
class _Reader:
    label: str

    def take(self, tree: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
        """An entry of one type."""
        value = tree.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(
                f"{escape(self.label)}: {escape(name)}: expected {_KINDS[kind]}, found {quote(value)}",
                tag="RECORD",
            )
        return value

    def maybe(self, tree: Mapping[str, Any], name: str, kind: type[_T]) -> _T | None:
        """An entry that may be missing."""
        return None if tree.get(name) is None else self.take(tree, name, kind)

    def objects(self, tree: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
        """The objects in a list."""
        listed = self.take(tree, name, list)
        yield from (self.take({name: one}, name, dict) for one in listed)

    def texts(self, tree: Mapping[str, Any], name: str) -> tuple[str, ...]:
        """The texts in a list."""
        return tuple(self.take({name: one}, name, str) for one in self.take(tree, name, list))

    def digest(self, tree: Mapping[str, Any], name: str = "sha256") -> str:
        """A SHA-256."""
        text = self.take(tree, name, str)
        if not SHA256.fullmatch(text):
            raise InputError(f"{escape(self.label)}: {escape(name)}: {quote(text)} is none", tag="RECORD")
        return text

    def record(self, content: Mapping[str, Any]) -> Recorded:
        schema = self.take(content, "schema", int)
        if schema > SCHEMA:
            raise NewerError(f"{escape(self.label)}: schema {schema}, this program knows {SCHEMA}")
        told = self.take(content, "deterministic", dict)
        output = self.maybe(told, "output", dict)
        if output is None:
            raise InputError(f"{escape(self.label)}: of a run that made no model", tag="RECORD")
        name = self.take(output, "name", str)
        digests = {self.take(one, "name", str): self.digest(one) for one in self.objects(output, "files")}
        return Recorded(
            self.label,
            RECORD,
            self.take(told, "recipe", dict),
            self.digest(told, "recipe_sha256"),
            tuple(self.inputs(told, "source")),
            {self.take(m, "at", str): self.take(m, "method", str) for m in self.objects(told, "methods")},
            name,
            {"": digests[name]} if list(digests) == [name] else digests,
            content=content,
        )

    def inputs(self, told: Mapping[str, Any], called: str) -> Iterator[RecordedInput]:
        for one in self.objects(told, "inputs"):
            yield RecordedInput(
                self.take(one, called, str),
                self.texts(one, "roles"),
                self.digest(one),
                self.take(one, "bytes", int),
                self.maybe(one, "variant", str),
                self.maybe(one, "revision", str),
            )

    def statement(self, content: Mapping[str, Any]) -> Recorded:
        predicate = self.take(content, "predicate", dict)
        build = self.take(predicate, "buildDefinition", dict)
        external = self.take(build, "externalParameters", dict)
        subjects = {
            self.take(one, "name", str): self.digest(self.take(one, "digest", dict))
            for one in self.objects(content, "subject")
        }
        if not subjects:
            raise InputError(f"{escape(self.label)}: no subject", tag="RECORD")
        first = next(iter(subjects))
        folder, _, _ = first.partition("/")
        single = len(subjects) == 1 and folder == first
        return Recorded(
            self.label,
            STATED,
            self.take(external, "recipe", dict),
            None,
            tuple(self.dependencies(build)),
            name=folder,
            files={"" if single else name.partition("/")[2]: digest for name, digest in subjects.items()},
            whole=True,
            content=content,
        )

    def dependencies(self, build: Mapping[str, Any]) -> Iterator[RecordedInput]:
        """The models; the files of a folder and those of the recipe have no annotations."""
        for one in self.objects(build, "resolvedDependencies"):
            about = self.maybe(one, "annotations", dict)
            if about is None:
                continue
            digest = self.take(one, "digest", dict)
            yield RecordedInput(
                self.take(about, "source", str),
                self.texts(about, "roles"),
                self.digest(digest, "dirHash" if "dirHash" in digest else "sha256"),
                None,
                self.maybe(about, "variant", str),
                self.maybe(about, "revision", str),
            )


_KINDS: Mapping[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def byproducts(statement: Recorded) -> dict[str, str]:
    """The digests of the files that a statement refers to, by their names: run.json and the sidecar."""
    reader = _Reader(statement.label)
    details = reader.take(reader.take(statement.content, "predicate", dict), "runDetails", dict)
    return {
        reader.take(one, "name", str): reader.digest(reader.take(one, "digest", dict))
        for one in reader.objects(details, "byproducts")
    }


def tensors_of(content: bytes, label: str) -> tuple[dict[str, list[Any]], str]:
    """The list in NAME.tensors.json, name → [dtype, shape, SHA-256], and the root it states.

    Raises:
        InputError: it is no such file.
    """
    tree = parse_object(content, label)
    reader = _Reader(label)
    root = reader.digest(tree, "tensor_root")
    found: dict[str, list[Any]] = {}
    for one in reader.take(tree, "tensors", list):
        if not _is_tensor(one) or one[0] in found:
            raise InputError(f"{escape(label)}: {quote(one)} is no tensor, or stands twice", tag="RECORD")
        found[one[0]] = one[1:]
    return found, root


def _is_tensor(one: Any) -> bool:
    return (
        isinstance(one, Sequence)
        and len(one) == 4
        and all(isinstance(part, str) for part in (one[0], one[1], one[3]))
        and isinstance(one[2], list)
    )
