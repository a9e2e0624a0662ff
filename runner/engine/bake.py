"""The change that adapters make of part of a tensor, from their factors as they are stored."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from runner.engine.evaluation import torch_dtype
from runner.errors import NumericError, escape
from runner.lora.adapters import Adapter
from runner.lora.algebra import Kind
from runner.lora.deltas import change_rows, dora_inputs, dora_rows
from runner.methods.factors import sides
from runner.models.changes import Change
from runner.tensors import DTYPES, TensorSpec

ROWS = 64  # of a change that are computed at a time: always the same ones, whatever is asked for
KEPT = 4  # adapters whose factors are kept: those of a tensor that is computed in tiles


class Bakery:
    """Computes changes for one worker.

    Args:
        read: fills a buffer with a stored tensor: (model, key, buffer).
        specs: of the stored tensors of each model.
    """

    def __init__(
        self, read: Callable[[int, str, memoryview], None], specs: Callable[[int], Mapping[str, TensorSpec]]
    ) -> None:
        self._read = read
        self._specs = specs
        self._factors: OrderedDict[tuple[int, str], tuple[dict[str, Tensor], float]] = OrderedDict()

    def change(
        self, model: int, changes: tuple[Change, ...], shape: tuple[int, ...], start: int, base: Tensor
    ) -> Tensor:
        """What a model's adapters change of elements of a tensor.

        Args:
            model: index of the adapters' file.
            changes: of the tensor.
            shape: of the whole tensor.
            start: first of the elements.
            base: the elements as they are, of any shape; whole rows if a change needs their lengths, and
                all of them if it needs those of inputs.

        Returns:
            In the shape and dtype of the base.
        """
        columns = math.prod(shape[1:])
        stop = start + base.numel()
        first, last = start // columns, -(-stop // columns)
        rows = torch.zeros((last - first, columns), dtype=torch.float64)
        for change in changes:
            share = change.share
            low, high = max(first, share.first), min(last, share.first + share.rows)
            if low < high:
                shift = share.start - share.first
                part = self._rows(model, change.adapter, low + shift, high + shift)
                if change.adapter.magnitude is not None:
                    own = base.reshape(-1, columns)[low - first : high - first].double()
                    lengths = self._loaded(model, change.adapter)[0]["magnitude"].reshape(-1)
                    if change.adapter.by_rows:
                        part = dora_rows(own, part, lengths[low + shift : high + shift])
                    else:
                        part = dora_inputs(own, part, lengths)
                rows[low - first : high - first] = part
        flat = rows.reshape(-1)[start - first * columns : stop - first * columns]
        return flat.to(base.dtype).reshape(base.shape)

    def pair(self, model: int, changes: tuple[Change, ...], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """What a model's adapters change of a whole tensor, as two factors with the scale in the first.

        Args:
            model: index of the adapters' file.
            changes: of the tensor.
            shape: of the tensor.

        Returns:
            Up and down, in float64.

        Raises:
            NumericError: a factor is not finite.
        """
        rows, columns = sides(shape)
        ups, downs = [], []
        for change in changes:
            share, adapter = change.share, change.adapter
            if adapter.kind is Kind.LORA:
                factors, scale = self._loaded(model, adapter)
                part = factors["up"].reshape(adapter.shape[0], -1)[share.start : share.start + share.rows]
                part, down = part * scale, factors["down"].reshape(factors["down"].shape[0], -1)
            else:  # a change that is no product of two matrices is one of itself and the identity
                part = self._rows(model, adapter, share.start, share.start + share.rows)
                down = torch.eye(columns, dtype=torch.float64)
            if not (torch.isfinite(part).all() and torch.isfinite(down).all()):
                label = escape(adapter.name)
                raise NumericError(
                    f"{label}: NaN or Inf in its factors, which have no product", tag="NONFINITE"
                )
            up = torch.zeros((rows, len(down)), dtype=torch.float64)
            up[share.first : share.first + share.rows] = part
            ups.append(up)
            downs.append(down)
        return torch.cat(ups, 1), torch.cat(downs)

    def _rows(self, model: int, adapter: Adapter, start: int, stop: int) -> Tensor:
        """Rows of a product, computed in fixed groups so that their bits do not depend on what is asked."""
        factors, scale = self._loaded(model, adapter)
        parts = []
        for group in range(start // ROWS * ROWS, stop, ROWS):
            end = min(group + ROWS, adapter.shape[0])
            rows = change_rows(adapter.kind, factors, group, end, scale)
            parts.append(rows[max(start - group, 0) : min(stop, end) - group])
        return torch.cat(parts)

    def _loaded(self, model: int, adapter: Adapter) -> tuple[dict[str, Tensor], float]:
        """The factors of an adapter in float64, and its scale."""
        known = self._factors.get((model, adapter.name))
        if known is None:
            named = dict(adapter.factors)
            if adapter.magnitude is not None:
                named["magnitude"] = adapter.magnitude
            factors = {role: self._tensor(model, key) for role, key in named.items()}
            alpha = float(self._tensor(model, adapter.alpha)) if adapter.alpha else None
            known = factors, adapter.scale(alpha)
            self._factors[model, adapter.name] = known
            if len(self._factors) > KEPT:
                self._factors.popitem(last=False)
        return known

    def _tensor(self, model: int, key: str) -> Tensor:
        spec = self._specs(model)[key]
        buffer = bytearray(max(1, spec.nbytes))
        self._read(model, key, memoryview(buffer)[: spec.nbytes])
        tensor = torch.frombuffer(buffer, dtype=torch_dtype(spec), count=spec.elements)
        assert DTYPES[spec.dtype].bits >= 8  # headers with packed tensors were refused
        return tensor.reshape(spec.shape).double()
