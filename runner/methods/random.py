"""Random numbers that depend on seed, merge, model and tensor, and on nothing else.

Element i of a tensor uses 64-bit word i of a Philox stream, so that any tile is reached directly and
order, threads and devices do not matter.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

WORDS_PER_BLOCK = 4  # of Philox: what its counter advances by
MANTISSA_BITS = 53  # of a float64: probabilities are compared with as many bits of a word


class Random:
    """The streams for part of a tensor, one for each model of a merge.

    Args:
        seed: of the recipe.
        merge: identity of the merge: its method and inputs.
        roles: of the models, in the order of the operands.
        key: canonical name of the tensor.
        start: first element, in the row-major order of the whole tensor.
    """

    def __init__(self, seed: int, merge: str, roles: Sequence[str], key: str, start: int) -> None:
        self._texts = [("runner-rng-1", str(seed), merge, role, key) for role in roles]
        self._start = start

    def keep(self, model: int, like: Tensor, probability: float) -> Tensor:
        """A mask in the shape of `like` that is true with a probability, element by element.

        Args:
            model: number of the operand whose stream is used, the base being 0.
            like: gives shape and device.
            probability: 0 to 1.
        """
        import numpy as np
        import torch

        digest = hashlib.sha256(b"\0".join(text.encode() for text in self._texts[model])).digest()
        words = np.frombuffer(digest[:16], dtype="<u8")
        stream = np.random.Philox(key=words)
        skipped = self._start % WORDS_PER_BLOCK
        stream.advance(self._start // WORDS_PER_BLOCK)
        drawn = stream.random_raw(skipped + like.numel())[skipped:]
        dropped = np.uint64(int((1 - probability) * 2**MANTISSA_BITS))
        mask = (drawn >> np.uint64(64 - MANTISSA_BITS)) >= dropped
        return torch.from_numpy(mask).reshape(like.shape).to(like.device)
