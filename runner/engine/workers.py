"""Threads that compute: what each of them needs, and the error if there is no memory for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from runner.errors import OutOfMemoryError


def one_torch_thread() -> None:
    """Has torch use this thread alone: its own would change the order of sums, and fight ours."""
    torch.set_num_threads(1)


@contextmanager
def workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads to compute in; what has not begun when the block is left is not done."""
    pool = ThreadPoolExecutor(threads, initializer=one_torch_thread)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def memory(what: str, size: str = "its operands") -> Iterator[None]:
    """Says for what the host had no memory, and how much that is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        hint = "lower memory= or tile_elements="
        raise OutOfMemoryError(f"{what}: no memory for {size}", hint=hint) from error
