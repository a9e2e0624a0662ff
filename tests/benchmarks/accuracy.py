"""Measures how far results on half precision weights are from float64: ours, and those of mergekit.

    PYTHONPATH=ROOT PEERS/bin/python tests/benchmarks/accuracy.py

PEERS is an environment as tests/methods/oracles/make.py describes it. Weights have a deviation of 0.02, the
differences of fine-tunes one of 0.001 with half of it in common. The error is ‖result − exact‖ / ‖exact −
base‖, relative to the change that was made; "ideal" is what rounding the exact result to the dtype costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runner.methods import METHODS

SHAPE, BASE, CHANGE = (640, 960), 0.02, 0.001


def models(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    base, common, *own = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(5))
    tuned = [base * BASE + CHANGE * (common + one) / 2**0.5 for one in own]
    return [one.to(dtype) for one in (base * BASE, *tuned)]


def ours(name: str, tensors: list[Tensor], dtype: torch.dtype, **parameters: Any) -> Tensor:
    method = METHODS[name, None]
    operands = [one.to(dtype) for one in tensors]
    if method.deltas:
        operands[1:] = [one - operands[0] for one in operands[1:]]
    result: Tensor = method.function(*operands, **parameters)
    return result


def theirs() -> dict[str, tuple[dict[str, Any], int, Callable[[list[Tensor]], Tensor]]]:
    """Method → our parameters, how many models, and mergekit's function of the tensors."""
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorBatch, TensorGroup
    from mergekit.merge_methods.linear import linear_merge
    from mergekit.merge_methods.model_stock import model_stock_merge_method
    from mergekit.merge_methods.slerp import slerp

    def linear(tensors: list[Tensor]) -> Tensor:
        batch = TensorBatch(tuple(one[None] for one in tensors))
        weights = torch.full((1, len(tensors)), 1.0, dtype=tensors[0].dtype)
        return linear_merge.merge_batch(batch, weight=weights, normalize=True)[0]

    def kit(name: str, normalize: bool, **options: Any) -> Callable[[list[Tensor]], Tensor]:
        def call(tensors: list[Tensor]) -> Tensor:
            names = ["base", *map(str, range(1, len(tensors)))]
            group = TensorGroup.from_tensors(tensors, ids=names, base_index=0)
            each = {key: dict.fromkeys(names[1:], value) for key, value in options.items()}
            return registry.get(name).merge_group(
                group, int8_mask=False, rescale=False, normalize=normalize, **{"lambda": 1.0}, **each
            )

        return call

    def stock(tensors: list[Tensor]) -> Tensor:
        return model_stock_merge_method.merge_group(
            TensorGroup.from_tensors(tensors, base_index=0), filter_wise=False
        )

    return {
        "linear": ({}, 4, linear),
        "slerp": (
            {"alpha": 0.4},
            2,
            lambda t: slerp(torch.tensor([0.4], dtype=t[0].dtype), t[0][None], t[1][None])[0],
        ),
        "task_arithmetic": ({"weight": 0.7}, 4, kit("task_arithmetic", False, weight=0.7, density=1.0)),
        "ties": ({"density": 0.5}, 4, kit("ties", True, weight=1.0, density=0.5)),
        "model_stock": ({}, 4, stock),
    }


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'method':<18}{'dtype':<10}{'ideal':>10}{'runner':>10}{'mergekit':>10}")
    for name, (parameters, count, call) in theirs().items():
        for dtype in (torch.float16, torch.bfloat16):
            tensors = models(dtype)[:count]
            exact = ours(name, tensors, torch.float64, **parameters)
            change = float((exact - tensors[0].double()).norm())
            results = (exact, ours(name, tensors, torch.float32, **parameters), call(list(tensors)))
            errors = [float((one.to(dtype).double() - exact).norm()) / change for one in results]
            print(f"{name:<18}{str(dtype)[6:]:<10}" + "".join(f"{error:10.2g}" for error in errors))


if __name__ == "__main__":
    main()
