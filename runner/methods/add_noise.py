"""add_noise: a model with normal random numbers added."""

from __future__ import annotations

from typing import Annotated

from runner.methods.random import Random
from runner.methods.registry import Range, Weight, method


@method(
    determinism="stable",
    scope="element",
    copies=(0, 12),
    result_is=lambda alpha: 0 if alpha == 0 else None,
)
def add_noise(a: Weight, *, random: Random, alpha: Annotated[float, Range(0, 0.1, "warn")]) -> Weight:
    """a + alpha·N(0, 1): each weight moved at random.

    Args:
        a: tensor of the model, any shape.
        random: streams of the merge; the recipe's seed chooses them.
        alpha: deviation of the noise, in the unit of the weights; 0 gives a bit for bit. The weights of
            image models have deviations of about 0.02.

    Source: hako-mikan sd-webui-supermerger, "plus random".
    """
    return random.normal(0, a).mul_(alpha).add_(a).to(a.dtype)
