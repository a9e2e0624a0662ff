"""linear: the weighted mean of any number of models (a model soup)."""

from __future__ import annotations

from runner.methods.registry import PerModel, Weight, cancelling, each, method


def _coefficients(weights: list[float], normalize: bool) -> list[float]:
    total = sum(weights)
    return [one / total for one in weights] if normalize else weights


def _check(weight: tuple[float, ...], normalize: bool) -> str | None:
    wrong = cancelling(weight) if normalize else None
    return wrong and f"{wrong}, or normalize: false"


def _only(weight: tuple[float, ...], normalize: bool) -> int | None:
    coefficients = _coefficients(list(weight), normalize)
    used = [number for number, one in enumerate(coefficients) if one != 0]
    return used[0] if len(used) == 1 and coefficients[used[0]] == 1 else None


@method(
    determinism="exact",
    scope="element",
    idempotent=lambda weight, normalize: normalize,
    check=_check,
    result_is=_only,
    spreads=True,
)
def linear(*models: Weight, weight: PerModel = 1.0, normalize: bool = True) -> Weight:
    """Σ c_i·x_i with c_i = w_i / Σ w_i: the weighted mean of the models, in recipe order.

    Args:
        models: tensors of the models, same shape.
        weight: of each model; one of 0 is left out, a lone one gives its model bit for bit.
        normalize: false takes the weights as they are.

    Source: Wortsman et al., Model soups, https://arxiv.org/abs/2203.05482.
    """
    coefficients = _coefficients(each(weight, len(models)), normalize)
    terms = [model * one for model, one in zip(models, coefficients, strict=True) if one != 0]
    result = terms[0] if terms else models[0] * 0
    for term in terms[1:]:
        result.add_(term)
    return result
