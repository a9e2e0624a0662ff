"""Random numbers that depend on seed, merge, model and tensor, and on nothing else.

Element i of a tensor uses 64-bit word i of a Philox stream, so that any tile is reached directly and
order, threads and devices do not matter.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
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

    def normal(self, model: int, count: int) -> Tensor:
        """Standard normal numbers in float64; number i is Box and Muller's of words 2i and 2i + 1.

        Args:
            model: number of the operand whose stream is used, the base being 0.
            count: how many, from the first of the stream on.
        """
        import numpy as np
        import torch

        words = self._words(model, 0, 2 * count) >> np.uint64(64 - MANTISSA_BITS)
        uniform = torch.from_numpy(words.astype(np.float64)) * 2.0**-MANTISSA_BITS
        radius = ((1 - uniform[0::2]).log() * -2).sqrt()  # 1 − u is never 0
        return radius * (uniform[1::2] * (2 * math.pi)).cos()

    def _words(self, model: int, start: int, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Words start … start + count of a stream."""
        import numpy as np

        digest = hashlib.sha256(b"\0".join(text.encode() for text in self._texts[model])).digest()
        stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
        skipped = start % WORDS_PER_BLOCK
        stream.advance(start // WORDS_PER_BLOCK)
        return stream.random_raw(skipped + count)[skipped:]
