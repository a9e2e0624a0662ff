"""Random numbers that depend on seed, merge, model and tensor, and on nothing else.

Element i of a tensor uses 64-bit word i of a Philox stream (for a normal number words 2i and 2i + 1),
so that any tile is reached directly and order, threads and devices do not matter.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    Words = np.ndarray[Any, np.dtype[np.uint64]]

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

    def keep(self, model: int, like: Tensor, probability: float | Tensor) -> Tensor:
        """A mask in the shape of `like` that is true with a probability, element by element.

        Args:
            model: number of the operand whose stream is used, the base being 0.
            like: gives shape and device.
            probability: 0 to 1, for all elements, or in float64 for each.
        """
        import numpy as np
        import torch

        drawn = self._words(model, self._start, like.numel()) >> np.uint64(64 - MANTISSA_BITS)
        if isinstance(probability, torch.Tensor):
            dropped = ((1 - probability.reshape(-1)) * 2**MANTISSA_BITS).cpu().numpy().astype(np.uint64)
        else:
            dropped = np.uint64(int((1 - probability) * 2**MANTISSA_BITS))
        return torch.from_numpy(drawn >= dropped).reshape(like.shape).to(like.device)

    def normal(self, model: int, like: Tensor) -> Tensor:
        """Normal numbers (mean 0, deviation 1) in the shape of `like`, in float64.

        Element i is made of words 2i and 2i + 1, by the cosine of Box and Muller.

        Args:
            model: number of the operand whose stream is used.
            like: gives shape and device.
        """
        import numpy as np
        import torch

        drawn = self._words(model, 2 * self._start, 2 * like.numel()) >> np.uint64(64 - MANTISSA_BITS)
        uniform = torch.from_numpy(drawn.astype(np.float64)).mul_(2.0**-MANTISSA_BITS)
        length, turn = uniform.view(-1, 2).t().contiguous().unbind()
        length.add_(2.0**-MANTISSA_BITS).log_().mul_(-2).sqrt_()  # of (0, 1]: a logarithm of 0 has no value
        return length.mul_(turn.mul_(2 * math.pi).cos_()).reshape(like.shape).to(like.device)

    def _words(self, model: int, first: int, count: int) -> Words:
        """Words first … first + count of a model's stream."""
        import numpy as np

        digest = hashlib.sha256(b"\0".join(text.encode() for text in self._texts[model])).digest()
        stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
        skipped = first % WORDS_PER_BLOCK
        stream.advance(first // WORDS_PER_BLOCK)
        words: Words = stream.random_raw(skipped + count)[skipped:]
        return words
