"""Processes that train side by side."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait


@contextmanager
def side_by_side(jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that start afresh, as PyTorch's threads do not survive a fork; None for this process alone."""
    if jobs == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(jobs,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(jobs: int) -> None:
    """Lets threads share the processor."""
    end_with_parent()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone: it would train on, and hold the locks of its bundle."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
