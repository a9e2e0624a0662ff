"""The largest share of a tensor, as a mask: exactly the elements the definition names, in linear time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def largest(values: Tensor, density: float) -> Tensor:
    """A mask of the k = max(1, int(density·N)) elements of largest magnitude; of equals the first.

    Args:
        values: any shape; not empty.
        density: share that is kept, above 0 to 1.
    """
    import numpy as np
    import torch

    count = values.numel()
    kept = max(1, int(density * count))
    if kept >= count:
        return torch.ones_like(values, dtype=torch.bool)
    magnitudes = values.abs().reshape(-1).numpy()
    threshold = np.partition(magnitudes, count - kept)[count - kept]
    mask = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    mask[ties[: kept - int(mask.sum())]] = True
    return torch.from_numpy(mask).reshape(values.shape)
