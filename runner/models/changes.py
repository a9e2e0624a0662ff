"""What adapters' files change of a model, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runner.architectures import Architecture
from runner.checkpoint import Checkpoint
from runner.errors import IncompatibleError, escape
from runner.lora.adapters import Adapter, Share, read_adapters
from runner.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Change:
    """What one adapter changes of a tensor.

    Attributes:
        adapter: whose product it is.
        share: which rows of the product belong to which rows of the tensor.
    """

    adapter: Adapter
    share: Share


def changes_of(
    architecture: Architecture | None,
    base: Mapping[str, TensorSpec],
    checkpoint: Checkpoint,
    *,
    partial: bool,
) -> dict[str, tuple[Change, ...]]:
    """The changes a file makes, by tensor.

    Args:
        architecture: of the model that is changed.
        base: its tensors, by the names of views.
        checkpoint: the adapters' file.
        partial: whether adapters of modules the model does not have are left out.

    Raises:
        IncompatibleError: the architecture is unknown, or with every key that has no place.
    """
    label = escape(checkpoint.label)
    if architecture is None:
        raise IncompatibleError(
            f"{label}: an adapter, and the model it is for is of an unknown architecture", tag="ADAPTER"
        )
    adapters = read_adapters(architecture, base, checkpoint.specs, checkpoint.metadata)
    adapters.check(checkpoint.label, partial=partial)
    found: dict[str, list[Change]] = {}
    for adapter in adapters.adapters:
        if not adapter.by_rows and len(adapter.shares) > 1:
            several = ", ".join(share.key for share in adapter.shares)
            raise IncompatibleError(
                f"{label}: {escape(adapter.name)}: DoRA with lengths of inputs over several tensors is not"
                f" baked ({several})",
                tag="ADAPTER",
                hint="bake it with the tool it was trained with",
            )
        for share in adapter.shares:
            found.setdefault(share.key, []).append(Change(adapter, share))
    return {key: tuple(changes) for key, changes in found.items()}
