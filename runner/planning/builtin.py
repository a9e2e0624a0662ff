"""The files without weights of a folder that is made of single files alone: built-in configs.

Tokenizers are not among them: a vocabulary can not be made up, and diffusers opens a folder whose
tokenizer is named and lacking with an empty one, without a word. So model_index.json says that there is
none, and a pipeline opens with those that are handed to it.
"""

from __future__ import annotations

from collections.abc import Mapping

from runner.architectures import Architecture
from runner.architectures.configs import PIPELINES, VERSION, Component, Config
from runner.errors import IncompatibleError, escape
from runner.formats.component_files import CONFIG, INDEX
from runner.formats.diffusers import config_text, json_text
from runner.models.model import component_config
from runner.planning.prediction import EPSILON, SCHEDULER, Prediction
from runner.resolve.resolved import Resolved
from runner.tensors import TensorSpec

Specs = Mapping[str, TensorSpec]
HINT = "output.config: FOLDER or hf:ORG/NAME names a pipeline whose files are taken instead"


def built_in(resolved: Resolved, specs: Specs, result: Prediction | None) -> dict[str, bytes]:
    """The files of a folder beside its weights, by name.

    Args:
        resolved: the recipe.
        specs: dtype and shape of each tensor of the folder.
        result: what the model predicts; None: nothing says it.

    Raises:
        IncompatibleError: the models are not those the configs are of.
    """
    architecture = resolved.primary.architecture
    assert architecture is not None  # else its layout were not converted
    pipeline, variant = PIPELINES[architecture.name], resolved.primary.variant
    if variant not in pipeline.classes:
        raise _refused(f"of {resolved.primary.title}")
    parts: dict[str, dict[str, TensorSpec]] = {}
    for key, spec in specs.items():
        component, _, name = key.partition("/")
        parts.setdefault(component, {})[name] = spec
    prediction = result or _untold(resolved)
    scheduler = _scheduler(resolved, prediction, specs)
    index: Config = {
        "_class_name": pipeline.classes[variant],
        **VERSION,
        **pipeline.index,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **{name: [None, None] for name in pipeline.tokenizers},
    }
    texts = {SCHEDULER: json_text(scheduler)}
    for name, known in pipeline.components.items():
        index[name] = list(known.kind) if name in parts else [None, None]
        if name not in parts:
            continue
        own = None
        if name in resolved.components:
            own = component_config(name, resolved.models[resolved.components[name]].checkpoint)
        if own is not None:
            texts[f"{name}/{CONFIG}"] = config_text(own)
        else:
            _check(architecture, name, known, parts[name])
            texts[f"{name}/{CONFIG}"] = json_text(known.config | known.read(parts[name], prediction.kind))
    texts[INDEX] = json_text(dict(sorted(index.items())))
    return texts


def lacking(resolved: Resolved, specs: Specs) -> str:
    """What a folder with built-in configs needs to run, for a warning.

    Args:
        resolved: the recipe.
        specs: of the tensors of the folder.
    """
    architecture = resolved.primary.architecture
    assert architecture is not None  # as above
    pipeline = PIPELINES[architecture.name]
    there = {key.partition("/")[0] for key in specs}
    names = [*pipeline.tokenizers, *(name for name in pipeline.components if name not in there)]
    passed = ", ".join(f"{name}=..." for name in names)
    return (
        f"built-in configs: the folder has no {', '.join(names)}, which no source brings. Open it with "
        f"from_pretrained(folder, {passed}), or merge again with output.config: FOLDER or hf:ORG/NAME, "
        "a pipeline of the same architecture"
    )


def _check(architecture: Architecture, name: str, component: Component, specs: Specs) -> None:
    """Raises: IncompatibleError if a config is not of these tensors."""
    for key, shape in component.sizes.items():
        found = specs[key].shape if key in specs else None
        if found is None or len(found) != len(shape):
            fits = False
        else:
            fits = all(wanted in (None, size) for wanted, size in zip(shape, found, strict=True))
        if not fits:
            sizes = "×".join("any" if size is None else str(size) for size in shape)
            there = "it is missing" if found is None else f"found {'×'.join(map(str, found))}"
            raise _refused(f"of {architecture.title}, whose {name}/{key} is {sizes}; {there}")
    if len(specs) not in component.tensors:
        counts = " or ".join(map(str, component.tensors))
        raise _refused(f"of {architecture.title}, whose {name} has {counts} tensors; found {len(specs)}")


def _untold(resolved: Resolved) -> Prediction:
    """What a model predicts of which nothing says it.

    Raises:
        IncompatibleError: its architecture comes in both kinds.
    """
    primary = resolved.primary
    assert primary.architecture is not None  # as above
    if primary.architecture.name == "sd2":
        raise IncompatibleError(
            f"{escape(primary.checkpoint.label)}: models of {primary.title} predict noise or v, and the file "
            "does not say which",
            tag="CONFIG",
            hint="prediction_type: epsilon (models of 512 pixels) or v_prediction (of 768) says it; or "
            "output.config: FOLDER names a pipeline whose files are taken",
        )
    return Prediction(EPSILON, f"as every {primary.title} that says nothing else")


def _scheduler(resolved: Resolved, prediction: Prediction, specs: Specs) -> Config:
    """The config of the scheduler.

    Raises:
        IncompatibleError: no built-in one fits what the model predicts.
    """
    architecture = resolved.primary.architecture
    assert architecture is not None  # as above
    if not prediction.edm:
        config = PIPELINES[architecture.name].scheduler(prediction.kind, bool(prediction.zero_snr), specs)
        if config is not None:
            return config
    raise _refused(f"for the scheduler of a {resolved.primary.title} model that predicts {prediction}")


def _refused(what: str) -> IncompatibleError:
    return IncompatibleError(
        f"output.format: diffusers: there are no built-in configs {what}", tag="CONFIG", hint=HINT
    )
