"""What is needed of CUDA: without torch the device, memory, copies and one stream; in PyTorch the switch of TF32."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from mer_export.errors import MerError, NotAvailableError

MAJOR, MINOR = 75, 76
"""Numbers of the driver's compute-capability attributes."""

DEVICES = r"cpu|cuda(:\d+)?"
"""How devices are named; with a number where it is one of several."""


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its name and compute capability, e.g. `9.0`."""

    name: str
    capability: str


@cache
def find_gpu(number: int = 0) -> Gpu | None:
    """The CUDA device of that number, or None."""
    try:
        driver = load_driver()
    except OSError:
        return None
    device, name, parts = ctypes.c_int(), ctypes.create_string_buffer(256), (ctypes.c_int * 2)()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), number):
        return None
    if driver.cuDeviceGetName(name, 256, device):
        return None
    for place, attribute in enumerate((MAJOR, MINOR)):
        if driver.cuDeviceGetAttribute(ctypes.byref(parts, place * ctypes.sizeof(ctypes.c_int)), attribute, device):
            return None
    return Gpu(name.value.decode(), f"{parts[0]}.{parts[1]}")


def load_driver() -> Any:
    """The functions of the CUDA driver; raises OSError where there is none."""
    return ctypes.CDLL("libcuda.so.1")


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether PyTorch rounds float32 to TF32 inside the block, in matrix products, convolutions and recurrent layers.

    PyTorch's own default is mixed: products are exact, convolutions and recurrent layers are rounded. The switches
    are the process's, not the thread's; they are put back afterwards.
    """
    import torch

    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    kept = [switch.fp32_precision for switch in switches]
    _round_to_tf32(switches, ["tf32" if on else "ieee"] * 3)
    try:
        yield
    finally:
        _round_to_tf32(switches, kept)


def _round_to_tf32(switches: tuple[Any, ...], values: list[str]) -> None:
    """Sets both generations of PyTorch's switches; it refuses to read the older ones where the two disagree."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = values[0] == "tf32"
    torch.backends.cudnn.allow_tf32 = values[1] == "tf32"
    for switch, value in zip(switches, values, strict=True):
        switch.fp32_precision = value


def no_gpu(number: int) -> str:
    """Why nothing runs on the CUDA device of that number, which is not there."""
    if number and find_gpu() is not None:
        there = next(n for n in range(1, number + 1) if find_gpu(n) is None)
        return f"no device cuda:{number}, this machine has cuda:0 to cuda:{there - 1}"
    return "this machine has no CUDA device: run on a machine with an NVIDIA GPU"


class Device:
    """A CUDA device with a stream of its own, current in the thread that made it. Memory is freed by `close`."""

    def __init__(self, number: int = 0) -> None:
        """Raises NotAvailableError where there is no such device."""
        if find_gpu(number) is None:
            raise NotAvailableError(no_gpu(number))
        self._driver = load_driver()
        self._memory: list[int] = []
        self._pinned: list[int] = []
        self._number = ctypes.c_int()
        self._context, self._stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._number), number)
        # The primary context is the one that libraries on top of the CUDA runtime share.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._number)
        self.bind()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 0)

    @property
    def stream(self) -> int:
        """Handle of the stream that copies run on."""
        return int(self._stream.value or 0)

    def bind(self) -> None:
        """Makes the device current in the calling thread; the driver keeps one per thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Address of `size` fresh bytes on the device."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        self._memory.append(address.value)
        return address.value

    def pinned(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Page-locked memory of the host, which is copied from and to without the driver's own copy; see `close`."""
        address, size = ctypes.c_void_p(), int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(max(size, 1)), 0)
        self._pinned.append(address.value or 0)
        held: Any = (ctypes.c_byte * max(size, 1)).from_address(address.value or 0)
        return np.frombuffer(held, dtype=dtype, count=int(np.prod(shape))).reshape(shape)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Starts copying a contiguous array to the device; it must live until `synchronise`."""
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )

    def download(self, array: np.ndarray, address: int) -> None:
        """Starts copying from the device into a contiguous array, complete after `synchronise`."""
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )

    def synchronise(self) -> None:
        """Waits for everything on the stream."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Frees memory and stream; arrays of `pinned` are not to be touched afterwards."""
        if not self._stream.value:
            return
        self.bind()
        for address in self._memory:
            self._call("cuMemFree_v2", ctypes.c_uint64(address))
        for address in self._pinned:
            self._call("cuMemFreeHost", ctypes.c_void_p(address))
        self._memory, self._pinned = [], []
        self._call("cuStreamDestroy_v2", self._stream)
        self._stream = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRelease_v2", self._number)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            reason = text.value.decode() if text.value else "unknown error"
            raise MerError(f"CUDA driver: {name} failed with {status}: {reason}")
