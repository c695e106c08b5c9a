"""Host arrays to a GPU and back through page-locked memory, which copies without waiting for each other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

KEPT = 32
"""Combinations of shapes whose buffers are kept; the one that was used longest ago goes first."""

Shapes = tuple[tuple[int, ...], ...]


class Staging:
    """Page-locked buffers beside tensors on a GPU, one set per combination of shapes."""

    def __init__(self, device: str):
        self._device = device
        self._sent: OrderedDict[Shapes, list[tuple[Any, Any]]] = OrderedDict()
        self._fetched: OrderedDict[Shapes, list[Any]] = OrderedDict()

    def send(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """The arrays as tensors on the device; the same tensors for every call of the same shapes."""
        import torch

        def pair(array: np.ndarray) -> tuple[Any, Any]:
            host = torch.empty(array.shape, dtype=torch.from_numpy(array[:0]).dtype, pin_memory=True)
            return host, torch.empty_like(host, device=self._device)

        pairs = _kept(self._sent, tuple(a.shape for a in arrays), lambda: [pair(a) for a in arrays])
        for array, (host, tensor) in zip(arrays, pairs, strict=True):
            np.copyto(host.numpy(), array)
            tensor.copy_(host, non_blocking=True)
        return [tensor for _, tensor in pairs]

    def fetch(self, tensors: Sequence[Any]) -> list[np.ndarray]:
        """What tensors on the device hold once everything before is done, as arrays of their own; floats as float32."""
        import torch

        def buffer(tensor: Any) -> Any:
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            return torch.empty(tensor.shape, dtype=dtype, pin_memory=True)

        shapes = tuple(tuple(t.shape) for t in tensors)
        hosts = _kept(self._fetched, shapes, lambda: [buffer(t) for t in tensors])
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return [host.numpy().copy() for host in hosts]


def _kept(held: OrderedDict[Shapes, Any], key: Shapes, make: Any) -> Any:
    """What is held for `key`, made where nothing is."""
    if key not in held:
        while len(held) >= KEPT:
            held.popitem(last=False)
        held[key] = make()
    held.move_to_end(key)
    return held[key]
