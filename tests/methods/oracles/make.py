"""Writes expected.safetensors: what other mergers compute from small seeded tensors.

Not run by the tests, which only read the file (and take `inputs` from here). To make it again, from
the root of the repository, with ENV an environment that has runner, pydantic and click:

    python3.11 -m venv peers
    peers/bin/pip install --no-deps mergekit==0.1.5 sd-mecha==1.1.8 peft==0.21.2
    peers/bin/pip install --no-deps scipy==1.17.1 fuzzywuzzy==0.18.0
    echo ENV/lib/python3.11/site-packages > peers/lib/python3.11/site-packages/zz_torch.pth
    peers/bin/python tests/methods/oracles/make.py

It was made with torch 2.14.1, numpy 2.4.6, transformers 5.24.0 and accelerate 1.15.0; made again, it
was the same to the byte.

The peers' own functions are called, in float64, with nothing of runner in between. The metadata of
the file holds one JSON object, `oracles`: the versions, and for each case how the inputs are made,
what was called, our method and parameters, and, where we differ on purpose, how (`differs`).
"""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

EXPECTED = Path(__file__).with_name("expected.safetensors")
PACKAGES = ("mergekit", "sd-mecha", "peft", "torch", "numpy")


def inputs(seed: int, count: int, shape: Sequence[int], near: float | None) -> list[Tensor]:
    """Seeded float64 tensors, the same bits with every version of everything.

    Args:
        seed: key of a Philox stream.
        count: how many tensors.
        shape: of each.
        near: None: independent, uniform in −1 to 1. A number: the first plus that number times
            differences that have two thirds of their length in common, as fine-tunes have.
    """
    elements = int(np.prod(shape, dtype=np.int64))
    words = np.random.Philox(key=seed).random_raw((count + 1) * elements)
    # Multiples of 2^-19: differences are exact in float32 too, in which peers compare magnitudes.
    numbers = (words >> np.uint64(44)).astype(np.float64) * 2.0**-19 - 1
    common, first, *others = (
        torch.from_numpy(part.copy()).reshape(tuple(shape)) for part in np.split(numbers, count + 1)
    )
    if near is not None:
        others = [first + near * (common + 0.5 * other) for other in others]
    return [first, *others]


Call = Callable[[list[Tensor]], Tensor]
CASES: dict[str, tuple[dict[str, Any], Call]] = {}


def case(
    name: str,
    call: Call,
    method: str,
    *,
    shape: tuple[int, ...] = (7, 9),
    count: int = 4,
    near: float | None = None,
    differs: str = "",
    seed: int | None = None,
    **parameters: Any,
) -> None:
    """Adds a case: `call` is the peer's, `method` and `parameters` are ours."""
    recipe = {
        "seed": 1000 + len(CASES) if seed is None else seed,
        "shape": shape,
        "count": count,
        "near": near,
        "method": method,
        "parameters": parameters,
        "differs": differs,
    }
    CASES[name] = (recipe, call)


def mergekit_cases() -> None:
    """mergekit: the kernels behind its configuration files.

    A `lambda` there is a scale here; the first model is the base.
    """
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorBatch, TensorGroup
    from mergekit.merge_methods.linear import linear_merge
    from mergekit.merge_methods.model_stock import model_stock_merge_method
    from mergekit.merge_methods.slerp import slerp as mergekit_slerp

    def linear(*weight: float, normalize: bool) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            batch = TensorBatch(tuple(model[None] for model in models))
            weights = torch.tensor([weight], dtype=torch.float64)
            return linear_merge.merge_batch(batch, weight=weights, normalize=normalize)[0]

        return call

    def generalized(name: str, weight: Sequence[float], density: Sequence[float], **options: Any) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            merger = registry.get(name)
            names = ["base", *map(str, range(1, len(models)))]
            group = TensorGroup.from_tensors(models, ids=names, base_index=0)
            return merger.merge_group(
                group,
                weight=dict(zip(names[1:], weight, strict=True)),
                density=dict(zip(names[1:], density, strict=True)),
                **{"int8_mask": False, "rescale": False, "lambda": 1.0, **options},
            )

        return call

    def stock(filter_wise: bool) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            group = TensorGroup.from_tensors(models, base_index=0)
            return model_stock_merge_method.merge_group(group, filter_wise=filter_wise)

        return call

    def slerp(t: float, rows: bool = False) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            a, b = models
            if rows:
                return mergekit_slerp(torch.full((a.shape[0],), t, dtype=torch.float64), a, b)
            return mergekit_slerp(torch.tensor([t], dtype=torch.float64), a[None], b[None])[0]

        return call

    conv, dense = (4, 3, 3, 3), (1.0, 1.0, 1.0)
    case(
        "mergekit/linear",
        linear(0.5, 0.3, 0.9, normalize=True),
        "linear",
        count=3,
        weight=[0.5, 0.3, 0.9],
        normalize=True,
    )
    case(
        "mergekit/linear/plain",
        linear(0.5, -0.3, 0.9, normalize=False),
        "linear",
        count=3,
        weight=[0.5, -0.3, 0.9],
        normalize=False,
    )
    case(
        "mergekit/task_arithmetic",
        generalized("task_arithmetic", [0.75, -0.5, 1.25], dense, normalize=False, **{"lambda": 0.8}),
        "task_arithmetic",
        weight=[0.75, -0.5, 1.25],
        scale=0.8,
    )
    case(
        "mergekit/task_arithmetic/normalize",
        generalized("task_arithmetic", [0.75, 0.5, 1.25], dense, normalize=True),
        "task_arithmetic",
        weight=[0.75, 0.5, 1.25],
        normalize=True,
    )
    case(
        "mergekit/task_arithmetic/negative",
        generalized("task_arithmetic", [0.75, -0.5, 1.25], dense, normalize=True),
        "task_arithmetic",
        weight=[0.75, -0.5, 1.25],
        normalize=True,
        differs="divides by the sum of the weights, which can cancel; ours by that of their magnitudes",
    )
    for label, shape in {"": (7, 9), "/conv": conv, "/bias": (90,), "/one": (1,)}.items():
        case(
            f"mergekit/ties{label}",
            generalized("ties", [0.75, 0.5, 1.25], [0.6, 0.3, 0.7], normalize=True, **{"lambda": 0.8}),
            "ties",
            shape=shape,
            weight=[0.75, 0.5, 1.25],
            density=[0.6, 0.3, 0.7],
            scale=0.8,
        )
    case(
        "mergekit/ties/sum",
        generalized("ties", [0.75, -0.5, 1.25], [0.6, 0.3, 0.7], normalize=False),
        "ties",
        weight=[0.75, -0.5, 1.25],
        density=[0.6, 0.3, 0.7],
        normalize=False,
    )
    case(
        "mergekit/ties/negative",
        generalized("ties", [0.75, -0.5, 1.25], [0.6, 0.3, 0.7], normalize=True),
        "ties",
        weight=[0.75, -0.5, 1.25],
        density=[0.6, 0.3, 0.7],
        differs="divides by the sum of the weights that agree; ours by that of their magnitudes",
    )
    for name in ("dare_linear", "dare_ties"):
        case(
            f"mergekit/{name}",
            generalized(name, [0.75, -0.5, 1.25], dense, normalize=False, rescale=True, **{"lambda": 0.8}),
            name,
            weight=[0.75, -0.5, 1.25],
            density=[1.0, 1.0, 1.0],
            scale=0.8,
        )
    for label, shape in {"": (7, 9), "/conv": conv, "/bias": (9,), "/one": (1,)}.items():
        case(f"mergekit/slerp{label}", slerp(0.3), "slerp", shape=shape, count=2, alpha=0.3)
    for label, shape in {"/row": (7, 9), "/row/conv": conv, "/row/column": (5, 1)}.items():
        case(
            f"mergekit/slerp{label}",
            slerp(0.3, rows=True),
            "slerp",
            shape=shape,
            count=2,
            alpha=0.3,
            per="row",
        )
    case(
        "mergekit/slerp/near",
        slerp(0.3),
        "slerp",
        count=2,
        near=0.02,
        alpha=0.3,
        differs="linear where |cos| > .9995; ours only where sin < 1e-6",
    )
    for label, shape in {"": (7, 9), "/conv": conv, "/bias": (9,)}.items():
        case(f"mergekit/model_stock{label}", stock(False), "model_stock", shape=shape, near=0.01)
    case("mergekit/model_stock/apart", stock(False), "model_stock")
    case("mergekit/model_stock/row", stock(True), "model_stock", near=0.01, per="row")
    case("mergekit/model_stock/row/bias", stock(True), "model_stock", shape=(9,), near=0.01, per="row")
    case(
        "mergekit/model_stock/row/conv",
        stock(True),
        "model_stock",
        shape=conv,
        near=0.01,
        per="row",
        differs="the rows of a convolution are those of its kernels, of 3 numbers; ours are its filters",
    )
    case(
        "mergekit/model_stock/tiny",
        stock(False),
        "model_stock",
        shape=(320,),
        near=1e-5,
        differs="products of norms below 1e-6 count as 1e-6, which draws small differences to the base",
    )


def sd_mecha_cases() -> None:
    """sd-mecha: the functions under its decorator."""
    from sd_mecha.extensions.builtin.merge_methods import linear, ties

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    def weighted_sum(models: list[Tensor]) -> Tensor:
        a, b = models
        return linear.weighted_sum.__wrapped__({"key": a}, {"key": b}, number(0.3), key="key")

    def add_difference(models: list[Tensor]) -> Tensor:
        a, b, c = models
        delta = linear.subtract.__wrapped__(b, c)
        return linear.add_difference.__wrapped__({"key": a}, {"key": delta}, number(0.7), key="key")

    def train_difference(models: list[Tensor]) -> Tensor:
        a, b, c = models
        mask = linear.train_difference_mask.__wrapped__(a, b, c, number(0.7))
        delta = linear.subtract.__wrapped__(b, c)
        return linear.add_difference.__wrapped__({"key": a}, {"key": delta}, mask, key="key")

    def equal_in_part(models: list[Tensor]) -> Tensor:
        a, b, _ = models
        return train_difference([a, b, b])  # 0 / (|b − a| + 0)

    def n_average(models: list[Tensor]) -> Tensor:
        return linear.n_average.__wrapped__(*({"key": model} for model in models), key="key")

    def slerp(models: list[Tensor]) -> Tensor:
        a, b = models
        return linear.slerp.__wrapped__(a, b, number(0.3))

    def opposite(models: list[Tensor]) -> Tensor:
        (a,) = models
        return linear.slerp.__wrapped__(a, -a, number(0.3))

    def of_deltas(function: Any, **options: Any) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            base, *others = models
            return base + function.__wrapped__(*(model - base for model in others), **options)

        return call

    conv = (4, 3, 3, 3)
    case("sd-mecha/weighted_sum", weighted_sum, "weighted_sum", count=2, alpha=0.3)
    case("sd-mecha/add_difference", add_difference, "add_difference", count=3, alpha=0.7)
    case("sd-mecha/train_difference", train_difference, "train_difference", count=3, alpha=0.7)
    case("sd-mecha/n_average", n_average, "linear", count=3)
    for label, shape in {"": (7, 9), "/conv": conv, "/bias": (9,)}.items():
        case(f"sd-mecha/slerp{label}", slerp, "slerp", shape=shape, count=2, alpha=0.3, magnitude="lerp")
    case(
        "sd-mecha/slerp/opposite",
        opposite,
        "slerp",
        count=1,
        alpha=0.3,
        magnitude="lerp",
        differs="opposite vectors are divided by a sine that is rounding noise; ours turns linear",
    )
    case("sd-mecha/ties/mass", of_deltas(ties.ties_sum, k=1.0, vote_sgn=True), "ties")
    case("sd-mecha/ties/count", of_deltas(ties.ties_sum, k=1.0), "ties", vote="count")
    case(
        "sd-mecha/ties/draw",
        of_deltas(ties.ties_sum, k=1.0),
        "ties",
        count=3,
        vote="count",
        differs="an equal vote gives 0; ours the positive side",
    )
    case(
        "sd-mecha/ties/trim",
        of_deltas(ties.ties_sum, k=0.5, vote_sgn=True),
        "ties",
        shape=(10,),
        density=0.5,
        differs="keeps what is at least the int((1 - k) N)-th smallest: 6 of 10 at k = .5; ours 5",
    )
    stock: dict[str, Any] = {"per": "row", "cosine": "adjacent", "near": 0.01}
    case("sd-mecha/model_stock", of_deltas(ties.model_stock), "model_stock", **stock)
    case("sd-mecha/model_stock/bias", of_deltas(ties.model_stock), "model_stock", shape=(9,), **stock)
    case(
        "sd-mecha/model_stock/conv",
        of_deltas(ties.model_stock),
        "model_stock",
        shape=conv,
        **stock,
        differs="the rows of a convolution are those of its kernels, of 3 numbers; ours are its filters",
    )


def peft_cases() -> None:
    """PEFT: its functions for adapters' weights, applied to differences."""
    from peft.utils import merge_utils

    def of_deltas(function: Any, weight: Sequence[float], **options: Any) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            base, *others = models
            weights = torch.tensor(weight, dtype=torch.float64)
            return base + function([model - base for model in others], weights, **options)

        return call

    some = [0.75, -0.5, 1.25]
    case(
        "peft/task_arithmetic",
        of_deltas(merge_utils.task_arithmetic, some),
        "task_arithmetic",
        weight=some,
    )
    for label, vote, theirs in (("mass", "mass", "total"), ("count", "count", "frequency")):
        case(
            f"peft/ties/{label}",
            of_deltas(merge_utils.ties, [1.0] * 3, density=0.6, majority_sign_method=theirs),
            "ties",
            density=0.6,
            vote=vote,
        )
    case(
        "peft/ties/weights",
        of_deltas(merge_utils.ties, [0.75, 0.5, 1.25], density=0.6),
        "ties",
        density=0.6,
        weight=[0.75, 0.5, 1.25],
        differs="weights after the election, and divides by the number of models that agree",
    )
    case(
        "peft/ties/one",
        of_deltas(merge_utils.ties, [1.0] * 3, density=0.6),
        "ties",
        shape=(1,),
        density=0.6,
        differs="keeps int(density N) elements, so none of one; ours at least one",
    )
    for name in ("dare_linear", "dare_ties"):
        case(
            f"peft/{name}",
            of_deltas(getattr(merge_utils, name), [1.0] * 3, density=1.0),
            name,
            density=[1.0, 1.0, 1.0],
            **({"normalize": True} if name == "dare_ties" else {}),
        )


def elementwise_cases() -> None:
    """sd-mecha and mergekit: what they have of the methods that mix, exchange and add by elements."""
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorGroup
    from sd_mecha.extensions.builtin.merge_methods import cosine, limiting, linear, slicing

    def add(name: str, call: Call, method: str, **given: Any) -> None:
        case(name, call, method, seed=int.from_bytes(name.encode()[-6:], "big"), **given)

    def of(function: Any, **options: Any) -> Call:
        wide = {
            key: torch.tensor(value, dtype=torch.float64) if key == "alpha" else value
            for key, value in options.items()
        }
        # Some write into their operands.
        return lambda models: function.__wrapped__(*(model.clone() for model in models), **wide)

    def masked(function: Any, alpha: float) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            a, b, c = models
            mask = of(function, alpha=alpha)(models)
            delta = linear.subtract.__wrapped__(b, c)
            return linear.add_difference.__wrapped__({"key": a}, {"key": delta}, mask, key="key")

        return call

    def perpendicular(models: list[Tensor]) -> Tensor:
        a, b, c = models
        new = linear.perpendicular_component.__wrapped__(a - c, b - c)
        alpha = torch.tensor(0.7, dtype=torch.float64)
        return linear.add_difference.__wrapped__({"key": a}, {"key": new}, alpha, key="key")

    def without_a(models: list[Tensor]) -> Tensor:
        (c,) = models
        return perpendicular([c, -c, c])

    def mergekit(name: str, **options: Any) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            group = TensorGroup.from_tensors(models, base_index=0)
            return registry.get(name).merge_group(group, **options)

        return call

    conv = (4, 3, 3, 3)
    for label, shape in {"": (7, 9), "/conv": conv, "/bias": (9,)}.items():
        for name, function in (("cosine_a", cosine.add_cosine_a), ("cosine_b", cosine.add_cosine_b)):
            add(
                f"sd-mecha/{name}{label}",
                of(function, alpha=0.2),
                name,
                shape=shape,
                count=2,
                near=0.7,
                alpha=0.2,
                range="none",
            )
        add(
            f"sd-mecha/add_perpendicular{label}",
            perpendicular,
            "add_perpendicular",
            shape=shape,
            count=3,
            alpha=0.7,
        )
    add(
        "sd-mecha/cosine_b/end",
        of(cosine.add_cosine_b, alpha=-1.0),
        "cosine_b",
        count=2,
        alpha=-1.0,
        range="none",
        differs="at -1 columns of negative similarity still take some of b; ours are a's",
    )
    add(
        "sd-mecha/add_perpendicular/zero",
        without_a,
        "add_perpendicular",
        count=1,
        alpha=0.7,
        differs="where a is c nothing is added; ours adds all that b learned",
    )
    for stiffness in (0.0, 0.3, 1.0):
        add(
            f"sd-mecha/clamp/{stiffness}",
            of(limiting.clamp, stiffness=stiffness),
            "clamp",
            count=5,
            stiffness=stiffness,
        )
    for label, width, offset in (("", 0.5, 0.25), ("/wrapped", 0.75, 0.5)):
        add(
            f"sd-mecha/tensor_sum{label}",
            of(slicing.tensor_sum, width=width, offset=offset),
            "tensor_sum",
            shape=(8, 9),
            count=2,
            alpha=width,
            beta=offset,
        )
    add(
        "sd-mecha/tensor_sum/rounding",
        of(slicing.tensor_sum, width=0.5, offset=0.0),
        "tensor_sum",
        count=2,
        alpha=0.5,
        beta=0.0,
        differs="rounds 3.5 rows to 4; ours cuts to 3, as supermerger does",
    )
    for label, width in (("", 1.0), ("/narrow", 0.4)):
        add(
            f"sd-mecha/top_k_tensor_sum{label}",
            of(slicing.top_k_tensor_sum, width=width, offset=0.0),
            "top_k_tensor_sum",
            count=2,
            width=width,
            offset=0.0,
        )
    add(
        "sd-mecha/top_k_tensor_sum/offset",
        of(slicing.top_k_tensor_sum, width=0.4, offset=0.3),
        "top_k_tensor_sum",
        count=2,
        width=0.4,
        offset=0.3,
        differs="the magnitude at the lower end is in the window; ours begins above, as in sd-meh",
    )
    add(
        "sd-mecha/geometric_sum",
        of(linear.geometric_sum, alpha=0.3),
        "geometric_sum",
        count=2,
        alpha=0.3,
    )
    for name in ("add_opposite", "add_strict_opposite"):
        add(
            f"sd-mecha/{name}",
            masked(getattr(linear, f"{name}_mask"), 0.7),
            name,
            count=3,
            alpha=0.7,
        )
    add("mergekit/nearswap", mergekit("nearswap", t=0.3), "nearswap", count=2, t=0.3)
    add(
        "mergekit/nearswap/tiny",
        mergekit("nearswap", t=1e-7),
        "nearswap",
        count=2,
        near=1e-8,
        t=1e-7,
        differs="distances below 1e-6 count as 1e-6, so that near weights move less than t; ours become b's",
    )
    add("mergekit/ram", mergekit("ram", epsilon=0.5), "ram", epsilon=0.5)
    # Its factor is a number of float32: this one is exact.
    add(
        "mergekit/ram_plus",
        mergekit("ramplus_tl", epsilon=0.5, r=0.5, alpha=0.25),
        "ram_plus",
        epsilon=0.5,
        r=0.5,
        alpha=0.25,
    )


def vector_cases() -> None:
    """mergekit and sd-mecha: methods on vectors and matrices."""
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import PerInputValues, TensorGroup
    from sd_mecha.extensions.builtin.merge_methods import kronecker, svd, ties

    seeds = itertools.count(3000)

    def add(name: str, call: Call, method: str, **rest: Any) -> None:
        case(name, call, method, seed=next(seeds), **rest)

    def kit(
        name: str, *, has_base: bool = False, each: dict[str, Sequence[float]] | None = None, **options: Any
    ) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            names = list(map(str, range(len(models))))
            group = TensorGroup.from_tensors(models, ids=names, base_index=0 if has_base else None)
            others = names[1:] if has_base else names
            values = {
                key: PerInputValues(list(zip(others, found, strict=True)))
                for key, found in (each or {}).items()
            }
            return registry.get(name).merge_group(group, **values, **options)

        return call

    def sparse(name: str, *, weight: list[float], density: list[float], **rest: Any) -> Call:
        each: dict[str, Sequence[float]] = {"weight": weight, "density": density}
        each |= {key: rest.pop(key) for key in ("gamma", "epsilon") if key in rest}
        return kit(
            name, has_base=True, each=each, **{"int8_mask": False, "rescale": False, "lambda": 0.8, **rest}
        )

    conv, bias, some = (4, 3, 3, 3), (90,), [0.75, 0.5, 1.25]
    for name in ("della_linear", "della"):
        given: dict[str, Any] = {"weight": some, "density": [1.0, 1.0, 1.0], "normalize": name == "della"}
        call = sparse(name, epsilon=[0.15] * 3, **given)
        add(f"mergekit/{name}", call, name, epsilon=[0.15] * 3, scale=0.8, **given)
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        given = {"weight": some, "density": [0.6, 0.3, 0.9], "gamma": [0.1, 0.0, 0.3]}
        for label, shape in {"": (7, 9), "/conv": conv, "/bias": bias}.items():
            call = sparse(name, normalize=label == "/bias", **given)
            add(
                f"mergekit/{name}{label}",
                call,
                name,
                shape=shape,
                normalize=label == "/bias",
                scale=0.8,
                **given,
            )
    given = {"weight": some, "density": [0.9] * 3, "gamma": [0.01] * 3, "normalize": False}
    add(
        "mergekit/breadcrumbs/one",
        sparse("breadcrumbs", **given),
        "breadcrumbs",
        shape=(1,),
        scale=0.8,
        differs="keeps int(density N) elements, so none of one; ours at least one",
        **given,
    )
    for label, shape in {"": (7, 9), "/conv": conv, "/bias": bias, "/one": (1,)}.items():
        add(f"mergekit/sce{label}", kit("sce", has_base=True), "sce", shape=shape)
    for label, shape in {"/some": (7, 9), "/some/conv": conv}.items():
        call = kit("sce", has_base=True, select_topk=0.4)
        add(f"mergekit/sce{label}", call, "sce", shape=shape, select_topk=0.4)
    add(
        "mergekit/sce/tiny",
        kit("sce", has_base=True),
        "sce",
        near=1e-4,
        differs="mean squares that add up to less than 1e-6 count as equal; ours weighs small ones too",
    )
    pair: dict[str, Sequence[float]] = {"weight": [0.7, 0.4]}
    for label, shape in {"": (7, 9), "/conv": conv, "/bias": bias}.items():
        add(f"mergekit/nuslerp{label}", kit("nuslerp", each=pair), "nuslerp", count=2, shape=shape, **pair)
    add(
        "mergekit/nuslerp/base",
        kit("nuslerp", has_base=True, each=pair),
        "nuslerp",
        count=3,
        first_is_base=True,
        **pair,
    )
    for label, per, row_wise in (("row", "row", False), ("column", "column", True)):
        call = kit("nuslerp", each=pair, nuslerp_flatten=False, nuslerp_row_wise=row_wise)
        add(f"mergekit/nuslerp/{label}", call, "nuslerp", count=2, per=per, **pair)
    add(
        "mergekit/nuslerp/row/conv",
        kit("nuslerp", each=pair, nuslerp_flatten=False),
        "nuslerp",
        count=2,
        shape=conv,
        per="row",
        differs="the rows of a convolution are those of its kernels, of 3 numbers; ours are its filters",
        **pair,
    )
    several: dict[str, Sequence[float]] = {"weight": [0.7, 0.4, 1.1]}
    for label, shape in {"": (7, 9), "/conv": conv, "/bias": bias}.items():
        call = kit("multislerp", each=several, eps=1e-300)
        add(f"mergekit/multislerp{label}", call, "multislerp", count=3, shape=shape, **several)
        call = kit("karcher", max_iter=50, tol=1e-12)
        add(f"mergekit/karcher{label}", call, "karcher", count=3, shape=shape, max_iter=50, tol=1e-12)
    add(
        "mergekit/multislerp/base",
        kit("multislerp", has_base=True, each=several, eps=1e-300),
        "multislerp",
        first_is_base=True,
        **several,
    )
    for label, shape in {"": (7, 9), "/bias": bias}.items():
        call = kit("arcee_fusion", has_base=True)
        add(f"mergekit/arcee_fusion{label}", call, "arcee_fusion", count=2, shape=shape)
    for label, shape in {"/conv": conv, "/point": (6, 5, 1, 1)}.items():
        add(
            f"mergekit/arcee_fusion{label}",
            kit("arcee_fusion", has_base=True),
            "arcee_fusion",
            count=2,
            shape=shape,
            differs="the softmax of a convolution is over the width of its kernels; ours over its filters",
        )

    def median(models: list[Tensor]) -> Tensor:
        return ties.geometric_median.__wrapped__(*models, maxiter=5)

    def dropout(models: list[Tensor]) -> Tensor:
        base, *others = models
        return base + ties.dropout.__wrapped__(*(one - base for one in others), probability=0.0)

    def of_delta(function: Any, **options: Any) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            base, model = models
            return base + function.__wrapped__(model - base, use_approximate_basis=False, **options)

        return call

    def rotate(alignment: float, alpha: float, centralization: float) -> Call:
        def call(models: list[Tensor]) -> Tensor:
            a, b = ({"key": model} for model in models)
            number = torch.tensor(alpha, dtype=torch.float64)
            return svd.rotate.__wrapped__(a, b, alignment, number, centralization, key="key")

        return call

    for label, shape in {"": (7, 9), "/conv": conv, "/bias": bias}.items():
        add(f"sd-mecha/geometric_median{label}", median, "geometric_median", shape=shape, max_iter=5)
    add("sd-mecha/dropout", dropout, "dare_linear", density=[1.0] * 3, normalize=True)
    for label, shape in {"": (7, 9), "/conv": conv, "/bias": bias}.items():
        call = of_delta(svd.truncate_rank, rank=2)
        add(f"sd-mecha/truncate_rank{label}", call, "truncate_rank", count=2, shape=shape, rank=2)
        for ratio in (0.3, 0.5):
            call = of_delta(kronecker.truncate_kronecker, kronecker_ratio=ratio)
            name = f"sd-mecha/truncate_kronecker{label}/{ratio:g}".replace(".", "")
            add(
                name,
                call,
                "truncate_kronecker",
                count=2,
                shape=(6, 8) if shape == (7, 9) else shape,
                ratio=ratio,
            )
    for label, shape, alignment in (("", (9, 5), 1.0), ("/half", (9, 5), 0.5), ("/square", (6, 6), 1.0)):
        numbers = {"alignment": alignment, "alpha": 0.3, "centralization": 0.5}
        add(f"sd-mecha/rotate{label}", rotate(**numbers), "rotate", count=2, shape=shape, **numbers)
    numbers = {"alignment": 1.0, "alpha": 0.0, "centralization": 1.0}
    add("sd-mecha/rotate/bias", rotate(1.0, 0.3, 1.0), "rotate", count=2, shape=bias, alpha=0.3)
    add(
        "sd-mecha/rotate/wide",
        rotate(**numbers),
        "rotate",
        count=2,
        shape=(5, 9),
        differs="a wide matrix is also turned where the rotation is not known, and its length changes",
        **numbers,
    )
    add(
        "sd-mecha/rotate/conv",
        rotate(**numbers),
        "rotate",
        count=2,
        shape=conv,
        differs="a convolution is [out * in, k * k], so that only kernels are turned; ours turns filters",
        **numbers,
    )


def main() -> None:
    """Calls every peer and writes the file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    mergekit_cases()
    sd_mecha_cases()
    peft_cases()
    elementwise_cases()
    vector_cases()
    expected = {
        name: call(inputs(recipe["seed"], recipe["count"], recipe["shape"], recipe["near"])).contiguous()
        for name, (recipe, call) in CASES.items()
    }
    assert all(tensor.dtype == torch.float64 for tensor in expected.values())
    about = {
        "versions": {peer: version(peer) for peer in PACKAGES},
        "cases": {name: recipe for name, (recipe, _) in CASES.items()},
    }
    save_file(expected, EXPECTED, {"oracles": json.dumps(about, sort_keys=True)})
    sys.stdout.write(f"{EXPECTED}: {len(expected)} cases, {EXPECTED.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
