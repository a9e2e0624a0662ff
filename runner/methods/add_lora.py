"""add_lora: adapters baked into a model."""

from __future__ import annotations

from runner.methods.registry import Adapter, PerModel, Weight, each, method


@method(determinism="stable", scope="element", copies=(2, 3))
def add_lora(a: Weight, *adapters: Adapter, strength: PerModel = 1.0) -> Weight:
    """a + Σ strength_i·Δ_i, Δ_i what adapter i (a LoRA or one of its kin) changes of the tensor.

    Args:
        a: tensor of the model, any shape.
        adapters: the changes, products of their factors times alpha / rank, same shape. A tensor that an
            adapter does not change gets nothing of it.
        strength: of each adapter; 1 as it was trained, 0 leaves it out.

    Source: kohya-ss/sd-scripts, networks/merge_lora.py; huggingface/peft, merge_and_unload.
    """
    strengths = each(strength, len(adapters))
    result = a.clone()
    for change, weight in zip(adapters, strengths, strict=True):
        result.add_(change * weight)
    return result
