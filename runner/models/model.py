"""Models on disk, recognised: whole ones, and components by themselves by whatever names they have.

A source of a component is a whole model, or the component alone: with the names it has inside a single file
or inside a folder, less what stands before them there. Names are told apart by trying: the ones under which
most tensors are known are those.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from runner.architectures import ARCHITECTURES, WELL_KNOWN, Architecture, Place, detect, place, variant
from runner.architectures.layouts import canonical
from runner.checkpoint import Checkpoint
from runner.disk.files import InputFile
from runner.errors import IncompatibleError, quote
from runner.formats import FORMATS
from runner.formats.component_files import CONFIG
from runner.lora.summary import detect_lora
from runner.models.changes import Change
from runner.models.quantised import Quantised, quantised
from runner.models.view import View, view_of
from runner.recipe.structure import Source
from runner.tensors import TensorSpec


@dataclass(frozen=True)
class Model:
    """A model on disk that the recipe names, opened.

    Attributes:
        sources: every place in the recipe that names it.
        checkpoint: its headers.
        view: its tensors under the names merges know them by.
        architecture: None if it is none we know.
        variant: what else than the plain model it is: "inpainting".
        adapters: the dialect of its names if it is a file of adapters, such as a LoRA; None for a model.
        changes: of adapters: what they change of the primary's tensors; the view then has their specs.
        revision: the commit of a model of the hub.
    """

    sources: tuple[Source, ...]
    checkpoint: Checkpoint
    view: View
    architecture: Architecture | None
    variant: str | None
    adapters: str | None = None
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    revision: str | None = None

    @property
    def title(self) -> str:
        """Its architecture, for people."""
        if self.adapters:
            return f"adapters ({self.adapters})"
        if self.architecture is None:
            return "unknown"
        return f"{self.architecture.title} {self.variant}" if self.variant else self.architecture.title

    def is_also(self, other: Model) -> bool:
        """Whether this is the same file, read in the same way."""
        return self.checkpoint.files == other.checkpoint.files and self.view.tensors == other.view.tensors

    def named_again(self, other: Model) -> Model:
        """This model, which the recipe names in the places of another, too.

        Args:
            other: that this one is also, perhaps for a component that this one was not named for.
        """
        ours = self.view.quantised
        both = replace(ours, beside={**ours.beside, **other.view.quantised.beside})
        sources = (*self.sources, *other.sources)
        return replace(self, sources=sources, view=replace(self.view, quantised=both))


@dataclass(frozen=True, slots=True)
class Naming:
    """How the names in a file become those in a whole model.

    Attributes:
        layout: of the whole model, "checkpoint" or "diffusers".
        prefix: what stands before each name there.
    """

    layout: str
    prefix: str = ""

    def view(
        self, architecture: Architecture | None, stored_specs: Mapping[str, TensorSpec], found: Quantised
    ) -> View:
        """The view of a model whose tensors have these names.

        Args:
            architecture: of the whole model; None if unknown.
            stored_specs: of its tensors as stored.
            found: what of them is quantised.
        """
        specs = found.tensors(stored_specs)
        stored = {self.prefix + key: key for key in specs}
        view = view_of(architecture, self.layout, {name: specs[key] for name, key in stored.items()})
        tensors = {
            name: replace(made, pieces=tuple(replace(one, key=stored[one.key]) for one in made.pieces))
            for name, made in view.tensors.items()
        }
        return View(tensors, view.left, found)


def recognised(sources: tuple[Source, ...], checkpoint: Checkpoint) -> Model:
    """A model of a merge: a whole one, or the UNet or transformer of one.

    Args:
        sources: every place in the recipe that names it.
        checkpoint: its headers.
    """
    specs = checkpoint.specs
    if (dialect := detect_lora(specs)) is not None:
        return Model(sources, checkpoint, View({}, {}), None, None, str(dialect))
    architecture = detect(checkpoint.format, specs)
    codes = quantised(checkpoint.label, specs)
    if architecture is None and checkpoint.format == "checkpoint" and (found := main_alone(specs)):
        architecture, kind = found
        view = Naming("diffusers", f"{architecture.main}/").view(architecture, specs, codes)
        return Model(sources, _alone(checkpoint, architecture.main), view, architecture, kind)
    kind = variant(architecture, checkpoint.format, specs) if architecture else None
    view = view_of(architecture, checkpoint.format, specs, codes)
    return Model(sources, checkpoint, view, architecture, kind)


def _alone(checkpoint: Checkpoint, component: str) -> Checkpoint:
    """A checkpoint that people are told to be a component."""
    title = checkpoint.title or FORMATS[checkpoint.format].title
    return replace(checkpoint, title=f"{title}, {component} alone")


def main_alone(specs: Mapping[str, TensorSpec]) -> tuple[Architecture, str | None] | None:
    """Architecture and variant of a file that is a folder's UNet or transformer; None if it is none.

    Args:
        specs: of its tensors; a single file's UNet is recognised without this.
    """
    for main in dict.fromkeys(architecture.main for architecture in ARCHITECTURES.values()):
        whole = {f"{main}/{key}": spec for key, spec in specs.items()}
        if architecture := detect("diffusers", whole):
            return architecture, variant(architecture, "diffusers", whole)
    return None


def component_names(architecture: Architecture | None, there: Collection[str]) -> list[str]:
    """The components a model of an architecture can be given.

    Args:
        architecture: None if unknown.
        there: components of the models of the merge.
    """
    tabled = architecture.components if architecture else ()
    return sorted({*tabled, *there} - {"other"})


def component_model(
    component: str, source: Source, checkpoint: Checkpoint, primary: Model, expected: Collection[str]
) -> tuple[Model, dict[str, Place]]:
    """The source of a component as a model, and the places of its tensors of that component.

    Args:
        component: that is taken from it.
        source: as the recipe names it.
        checkpoint: its headers.
        primary: of the merge; its architecture is the result's.
        expected: names in views of the component's tensors in the primary.

    Raises:
        IncompatibleError: it is of another architecture, or has nothing of the component.
    """
    other, architecture = recognised((source,), checkpoint), primary.architecture
    if other.architecture not in (None, architecture):
        raise IncompatibleError(
            f"components.{component}: {quote(source.name)} is {other.title}, the result is {primary.title}",
            tag="COMPONENT",
            hint="give a model of the same architecture, or the component alone",
        )
    best: tuple[Model, dict[str, Place]] | None = None
    most = 0
    for naming in _namings(component, architecture, checkpoint.format):
        view = naming.view(architecture, checkpoint.specs, other.view.quantised)
        places = {key: _place(architecture, naming, view, key) for key in view.tensors}
        places = {key: at for key, at in places.items() if at.component == component}
        known = sum(key in expected or is_known(architecture, key) for key in places)
        if known > most:
            view = _with_beside_of(component, architecture, naming, view)
            whole = naming == Naming(checkpoint.format)
            headers = checkpoint if whole else _alone(checkpoint, component)
            best, most = (Model((source,), headers, view, architecture, other.variant), places), known
    if best is None:
        raise IncompatibleError(
            f"components.{component}: {quote(source.name)} has no tensor of the {component} "
            f"of {primary.title}",
            tag="COMPONENT",
            hint="names are tried as single files and folders have them, with and without their prefix",
        )
    return best


def component_config(component: str, checkpoint: Checkpoint) -> InputFile | None:
    """The config of a component in a pipeline's folder, or in that of the component alone."""
    return checkpoint.others.get(f"{component}/{CONFIG}") or checkpoint.others.get(CONFIG)


def is_known(architecture: Architecture | None, key: str) -> bool:
    """Whether a name in a view is one of the architecture's."""
    return architecture is not None and bool(canonical(architecture, "diffusers", key))


def _place(architecture: Architecture | None, naming: Naming, view: View, key: str) -> Place:
    layout = "diffusers" if architecture and key not in view.left else naming.layout
    return place(architecture, layout, key)


def _with_beside_of(component: str, architecture: Architecture | None, naming: Naming, view: View) -> View:
    """A view that has of what is stored beside its tensors only what is of a component."""
    beside = {
        key: why
        for key, why in view.quantised.beside.items()
        if place(architecture, naming.layout, naming.prefix + key).component == component
    }
    return replace(view, quantised=replace(view.quantised, beside=beside))


def _namings(component: str, architecture: Architecture | None, layout: str) -> Iterator[Naming]:
    """The names a source may have; those of a whole model first: they win where others fit as well."""
    yield Naming(layout)
    if layout == "diffusers":
        return
    yield Naming("diffusers", f"{component}/")
    prefixes = architecture.prefixes if architecture else WELL_KNOWN
    yield from (
        Naming("checkpoint", prefix)
        for prefix, of in prefixes.items()
        if of == component and prefix != "model_ema."
    )
