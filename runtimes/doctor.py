"""What this machine has for training, exporting and running models, what works, and why the rest does not."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from importlib import import_module, metadata, util
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mer_export.cuda import find_gpu
from mer_export.errors import NotAvailableError
from mer_export.exporters.tensorrt import MODULES, without_kernels
from mer_export.faults import PACKAGES
from mer_export.install import install_hint
from mer_export.machine import cores, cpu_model


class Check(BaseModel):
    """One line of the doctor's report."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: str
    status: Literal["ok", "missing", "broken"]
    version: str = ""
    detail: str = ""


def examine() -> list[Check]:
    """Looks at every package and device by using it, never by its presence alone."""
    return [
        Check(name="python", role="all", status="ok", version=platform.python_version(), detail=sys.executable),
        _machine(),
        _gpu(),
        _package("torch", "train, export", _torch),
        _package("accelerate", "train: several processes, mixed precision"),
        _package("onnx", "export"),
        _package("onnxscript", "export"),
        _onnxruntime(),
        _package("openvino", "runtime", _openvino),
        _tensorrt(),
        _package("tokenizers", "text"),
        _package("transformers", "encoder: of a folder"),
        _package("pyarrow", "Parquet"),
        _package("h5py", "HDF5"),
        _package("soundfile", "sound"),
        _package("soxr", "sound"),
        _package("av", "video"),
        _package("PIL", "pictures"),
        _package("opensmile", "signals: egemaps"),
        _package("matplotlib", "report"),
        _package("jinja2", "report"),
        _package("tensorboard", "train --track"),
        _package("mlflow", "train --track"),
        _package("wandb", "train --track"),
        _package("sklearn", "experiment: linear baselines"),
        _package("huggingface_hub", "push, pull"),
        _package("starlette", "serve"),
        _package("uvicorn", "serve"),
        _package("prometheus_client", "serve"),
        _package("tritonclient", "triton"),
        _package("ray", "infer --cluster"),
    ]


def require(checks: list[Check], names: list[str]) -> None:
    """Raises NotAvailableError for the first of `names` that does not work here."""
    known = {c.name: c for c in checks}
    for name in names:
        check = known.get(name)
        if check is None:
            raise NotAvailableError(f"{name} is nothing the doctor knows, there are {sorted(known)}")
        if check.status != "ok":
            raise NotAvailableError(f"{name} is {check.status} here: {check.detail}")


def _machine() -> Check:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    detail = f"{cpu_model()}, {cores()} cores, {memory:.0f} GiB memory"
    return Check(name="machine", role="all", status="ok", version=platform.machine(), detail=detail)


def _gpu() -> Check:
    """Asks the CUDA driver itself, so that no framework is needed."""
    base = {"name": "cuda", "role": "GPU"}
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Check(**base, status="missing", detail="no NVIDIA driver (libcuda.so.1) on this machine")
    count, name = ctypes.c_int(0), ctypes.create_string_buffer(128)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Check(**base, status="missing", detail="the NVIDIA driver is there and finds no device")
    driver.cuDeviceGetName(name, 128, 0)
    return Check(**base, status="ok", detail=f"{count.value} device(s), first: {name.value.decode()}")


def _package(module: str, role: str, probe: Callable[[], str] | None = None) -> Check:
    base = {"name": module, "role": role}
    if util.find_spec(module) is None:
        return Check(**base, status="missing", detail=install_hint(*PACKAGES[module]))
    try:
        found = import_module(module)
        detail = probe() if probe else ""
    except Exception as error:  # a broken binary raises anything
        return Check(**base, status="broken", version=_version(module), detail=_first_line(error))
    # Some are called otherwise where they are installed: pillow, scikit-learn.
    return Check(**base, status="ok", version=_version(module) or getattr(found, "__version__", ""), detail=detail)


def _torch() -> str:
    import torch

    torch.ones(2, 2) @ torch.ones(2, 2)
    if torch.cuda.is_available():
        return f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}"
    return "CPU only: " + ("this build has no CUDA" if torch.version.cuda is None else "no usable CUDA device")


def _openvino() -> str:
    import openvino

    return "devices: " + ", ".join(openvino.Core().available_devices)


def _onnxruntime() -> Check:
    check = _package("onnxruntime", "runtime", _providers)
    wheels = [w for w in ("onnxruntime", "onnxruntime-gpu") if _version(w)]
    if len(wheels) == 2:
        detail = "onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, then install one"
        return check.model_copy(update={"status": "broken", "detail": detail})
    if wheels and not check.version:
        return check.model_copy(update={"version": _version(wheels[0])})
    return check


def _providers() -> str:
    import onnxruntime

    return "providers: " + ", ".join(onnxruntime.get_available_providers())


def _tensorrt() -> Check:
    base = {"name": "tensorrt", "role": "export, runtime"}
    flavours = [m for m in MODULES if util.find_spec(m)]
    if not flavours:
        return Check(**base, status="missing", detail=install_hint("tensorrt", "tensorrt-rtx"))
    try:
        module = import_module(flavours[0])
        module.Builder(module.Logger(module.Logger.ERROR))
    except Exception as error:
        return Check(**base, status="broken", detail=f"{flavours[0]}: {_first_line(error)}")
    gpu = find_gpu()
    runs = "builds and runs engines" if gpu else "builds engines; running them needs a GPU"
    lacking = gpu and without_kernels(module, MODULES[flavours[0]], gpu)
    return Check(**base, status="ok", version=module.__version__, detail=f"{flavours[0]}: {lacking or runs}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
