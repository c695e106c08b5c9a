"""Where a run computes and how exactly: the device, autocast, TF32, and what is kept of it with the bundle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from mer_export.cuda import tf32
from mer_export.errors import NotAvailableError, UsageError
from mer_export.install import not_installed
from train.config import Precision, TrainConfig
from train.memory import kept_between_steps
from train.processes import PATIENCE

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Device, autocast and processes.

    Raises:
        NotAvailableError: a missing package or GPU.
        UsageError: a precision that the device does not have, or one GPU for several processes.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError:
        raise NotAvailableError(not_installed("accelerate", "train")) from None
    device = find_device(config.device)
    bf16 = find_precision(config.precision, device) == "bf16"
    # accelerate remembers device and precision of the first run in a process; each run here has its own.
    AcceleratorState._reset_state(reset_partial_state=not _several_processes())
    with _environment("ACCELERATE_TORCH_DEVICE", None if _several_processes() else str(device)):
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="bf16" if bf16 else "no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )


def find_device(wanted: str) -> torch.device:
    """The device of this process: one GPU each where there are several processes.

    Raises:
        NotAvailableError: there is no such GPU; names those that there are.
        UsageError: an index with several processes.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NotAvailableError("no CUDA device is available: pass --device cpu")
    _, _, index = wanted.partition(":")
    if index and _several_processes():
        raise UsageError(f"device {wanted} is one GPU for several processes: pass --device cuda, each takes its own")
    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    there = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if number >= len(there):
        raise NotAvailableError(f"there is no cuda:{number}, there are {', '.join(there)}: pass another --device")
    return torch.device("cuda", number)


def find_precision(wanted: Precision, device: torch.device) -> Precision:
    """What `auto` means on a device; raises UsageError for one that it does not have."""
    if wanted == "auto":
        bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if bf16 else "fp32"
    if wanted == "tf32" and device.type != "cuda":
        raise UsageError(f"precision tf32 is of CUDA devices, this run is on {device.type}: pass --precision fp32")
    return wanted


@contextlib.contextmanager
def computing(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Runs a block with the device, the threads and the rounding of a run; what was set before comes back."""
    before = torch.get_num_threads()
    here = torch.cuda.device(device) if device.type == "cuda" else kept_between_steps()
    torch.set_num_threads(config.threads or before)
    try:
        with here, tf32(find_precision(config.precision, device) == "tf32"):
            yield
    finally:
        torch.set_num_threads(before)


def describe(config: TrainConfig, accelerator: Accelerator) -> dict[str, Any]:
    """What a run computes on and how, for the bundle's provenance."""
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": find_precision(config.precision, device),
        "processes": accelerator.num_processes,
    }


def _several_processes() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Sets a variable of the environment for a block; None leaves it."""
    before = os.environ.get(name)
    try:
        if value is not None:
            os.environ[name] = value
        yield
    finally:
        if value is not None:
            os.environ.pop(name)
            os.environ.update({} if before is None else {name: before})
