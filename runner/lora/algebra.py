"""What factors there are, and what product they make: by their shapes alone.

Source: kohya-ss/sd-scripts, networks/lora.py; KohakuBlueleaf/LyCORIS 3 and 4, lycoris/modules/locon.py,
loha.py, lokr.py, full.py and norms.py; huggingface/peft, tuners/lora, loha and lokr.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

Shape = tuple[int, ...]


class Kind(StrEnum):
    """An algebra: how factors make a change."""

    LORA = "lora"  # up × down; of a convolution too
    TUCKER = "tucker"  # LoRA of a convolution with a core between up and down
    LOHA = "loha"  # two products, multiplied element by element
    LOKR = "lokr"  # a Kronecker product
    DIFF = "diff"  # the change itself, of a weight
    NORM = "norm"  # the change itself, of a norm's weight
    BIAS = "bias"  # the change itself, of a bias


class MisfitError(Exception):
    """Factors that make no product, in words."""


@dataclass(frozen=True, slots=True)
class Product:
    """What factors make.

    Attributes:
        kind: of algebra.
        shape: of the product. One of two dimensions may be a matrix of a convolution's rows.
        rank: of the factors; None if there is none.
    """

    kind: Kind
    shape: Shape
    rank: int | None = None


_ADAPTER = r"(?:\.[^.]{1,64})?"  # the name PEFT gives an adapter
_OLD = r"(?:_lora[12]?|\.lora|\.lora_linear_layer)"  # diffusers before it used PEFT, and X-Labs
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
# Role → how keys end that have it. What the last is we know, but not how to compute it.
_ROLES = {
    "down": rf"\.lora_down\.weight|\.lora_A{_ADAPTER}\.weight|{_OLD}\.down\.weight",
    "up": rf"\.lora_up\.weight|\.lora_B{_ADAPTER}\.weight|{_OLD}\.up\.weight",
    "mid": r"\.lora_mid\.weight",
    "alpha": rf"{_OLD}?\.alpha",
    "magnitude_vector": rf"\.lora_magnitude_vector{_ADAPTER}",
    "dora_scale": r"\.dora_scale",
    **{role: rf"\.{role}{_ADAPTER}" for role in (*_HADA, *_LOKR)},
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "w_norm": r"\.w_norm",
    "b_norm": r"\.b_norm",
    "other": (
        rf"\.(?:lora_B{_ADAPTER}\.bias|lora_embedding_[AB]{_ADAPTER}|lokr_t1|oft_(?:blocks|R|diag)|rescale"
        r"|on_input|[ab][12]\.weight|bm\.weight|set_weight|reshape_weight|lora_(?:up|down)\.bias)"
    ),
}
# Every way to end begins with a dot or this word: elsewhere none of them is tried.
_KEY = re.compile(
    r"(?=\.|_lora)(?:" + "|".join(f"(?P<{role}>{pattern})" for role, pattern in _ROLES.items()) + r")\Z"
)
_LONGEST = 128  # characters of what it matches; keys come from strangers
_BESIDE = {"alpha", "dora_scale", "magnitude_vector", "other"}  # these are no factors
BIASES = ("diff_b", "b_norm")
MAGNITUDES = ("dora_scale", "magnitude_vector")


@functools.lru_cache(maxsize=1 << 14)  # the same names stand in file after file
def role_of(key: str) -> tuple[str, str] | None:
    """The name of the module a key belongs to, and its role there; None if it is no key of an adapter."""
    match = _KEY.search(key, max(len(key) - _LONGEST, 1))
    if not match:
        return None
    role = match.lastgroup
    assert role is not None
    number = re.match(r"_lora([12])", match[0])  # X-Labs: of the image, of the text
    return key[: match.start()] + (number[1] if number else ""), role


def is_factor(role: str) -> bool:
    """Whether a change is made of it."""
    return role not in _BESIDE


def product(shapes: Mapping[str, Shape]) -> Product:
    """What factors make.

    Args:
        shapes: role → shape of the factor.

    Raises:
        MisfitError: if a factor is missing, or they do not fit each other.
    """
    roles = set(shapes)
    if roles & {"up", "down", "mid"}:
        return _lora(shapes)
    if roles & set(_HADA):
        return _loha(shapes)
    if roles & set(_LOKR):
        return _lokr(shapes)
    kinds = {"diff": Kind.DIFF, "w_norm": Kind.NORM, "diff_b": Kind.BIAS, "b_norm": Kind.BIAS}
    role = next(role for role in kinds if role in roles)
    _exactly(shapes, role)
    return Product(kinds[role], shapes[role])


def _lora(shapes: Mapping[str, Shape]) -> Product:
    if "mid" not in shapes:
        _exactly(shapes, "up", "down")
        up, down = _bare("up", shapes["up"]), shapes["down"]
        rank = _rank(up[1], _at_least("down", down, 2)[0])
        return Product(Kind.LORA, (up[0], *down[1:]), rank)
    _exactly(shapes, "up", "down", "mid")
    up, down, mid = (
        _bare("up", shapes["up"]),
        _bare("down", shapes["down"]),
        _at_least("mid", shapes["mid"], 3),
    )
    if mid[:2] != (up[1], down[0]):
        raise MisfitError(f"ranks differ: up {up[1]}, mid {_text(mid[:2])}, down {down[0]}")
    return Product(Kind.TUCKER, (up[0], down[1], *mid[2:]), _rank(up[1], down[0]))


def _loha(shapes: Mapping[str, Shape]) -> Product:
    cores = "hada_t1" in shapes or "hada_t2" in shapes
    _exactly(shapes, *(_HADA if cores else _HADA[:4]))
    halves = [_half(shapes, f"hada_w{half}", f"hada_t{half}" if cores else None) for half in (1, 2)]
    if halves[0] != halves[1]:
        raise MisfitError(f"the halves differ: {_text(halves[0][0])} and {_text(halves[1][0])}")
    return Product(Kind.LOHA, *halves[0])


def _lokr(shapes: Mapping[str, Shape]) -> Product:
    roles, parts, ranks = set(shapes), [], []
    for part in ("1", "2"):
        name, core = f"lokr_w{part}", f"lokr_t{part}"
        if name in roles:
            roles.discard(name)
            parts.append(_at_least(name, shapes[name], 2))
            continue
        needed = {f"{name}_a", f"{name}_b"}
        if missing := needed - roles:
            raise MisfitError(f"no {_list(missing)}")
        roles -= needed | {core}
        shape, rank = _half(shapes, name, core if core in shapes else None)
        parts.append(shape)
        ranks.append(rank)
    if roles:
        raise MisfitError(f"{_list(roles)} too many")
    if len(set(ranks)) > 1:
        raise MisfitError(f"ranks differ: {ranks[0]} and {ranks[1]}")
    one, two = parts
    if len(one) > 2 and set(one[2:]) != {1}:
        raise MisfitError(f"lokr_w1 {_text(one)} is no matrix")
    shape = (one[0] * two[0], one[1] * two[1], *two[2:])
    return Product(Kind.LOKR, shape, ranks[0] if ranks else None)


def _half(shapes: Mapping[str, Shape], name: str, core: str | None) -> tuple[Shape, int]:
    """Shape and rank of a product of two factors, with a core or without."""
    a, b = (shapes[f"{name}_{letter}"] for letter in "ab")
    if core is None:
        a = _bare(f"{name}_a", a)
        rank = _rank(a[1], _at_least(f"{name}_b", b, 2)[0])
        return (a[0], *b[1:]), rank
    t = _at_least(core, shapes[core], 3)
    a, b = _bare(f"{name}_a", a), _bare(f"{name}_b", b)
    if t[:2] != (a[0], b[0]):
        raise MisfitError(f"ranks differ: {name}_a {a[0]}, {core} {_text(t[:2])}, {name}_b {b[0]}")
    return (a[1], b[1], *t[2:]), _rank(a[0], b[0])


def _exactly(shapes: Mapping[str, Shape], *needed: str) -> None:
    if missing := set(needed) - set(shapes):
        raise MisfitError(f"no {_list(missing)}")
    if extra := set(shapes) - set(needed):
        raise MisfitError(f"two algebras at once: {_list(needed)} and {_list(extra)}")


def _rank(one: int, other: int) -> int:
    if one != other:
        raise MisfitError(f"ranks differ: {one} and {other}")
    if one == 0:
        raise MisfitError("a rank of 0")
    return one


def _at_least(role: str, shape: Shape, dimensions: int) -> Shape:
    if len(shape) < dimensions:
        raise MisfitError(f"{role} {_text(shape)} has too few dimensions")
    return shape


def _bare(role: str, shape: Shape) -> Shape:
    """The shape of a matrix, which may have the dimensions of a 1x1 convolution."""
    if len(shape) < 2 or set(shape[2:]) - {1}:
        raise MisfitError(f"{role} {_text(shape)} is no matrix")
    return shape[:2]


def fits(shape: Shape, target: Shape) -> bool:
    """Whether a product is of a target's shape, but for 1x1 kernels, or of that of its matrix."""
    if _without_ones(shape) == _without_ones(target):
        return True
    return len(shape) == 2 and shape[:1] == target[:1] and shape[1] == math.prod(target[1:])


def _without_ones(shape: Shape) -> Shape:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _list(roles: Iterable[str]) -> str:
    return ", ".join(sorted(roles))


def _text(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"
