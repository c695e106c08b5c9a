"""What a measurement ran on: the class of machine and the versions, never its name."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt_rtx_cu13_bindings",
    "onnx",
    "numpy",
)
GPU_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "memory.total")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Processor, cores, memory, GPU with its clocks, versions and present load."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": gpus(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions(),
        "load_average": load_average(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def gpus() -> list[dict[str, str]]:
    """Name, driver and present clocks of each NVIDIA GPU; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        dict(zip(GPU_FIELDS, (v.strip() for v in line.split(",")), strict=False))
        for line in done.stdout.splitlines()
        if line.strip()
    ]


CGROUP = Path("/sys/fs/cgroup")
LIMITS = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)
"""Where control groups say how much memory a container may take, what it has, and, under a prefix, of what."""


def available_bytes() -> int | None:
    """Memory that can be taken without pushing anything out; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 2**10
    except (OSError, StopIteration, ValueError):
        return None
    allowed = _allowed_bytes()
    return free if allowed is None else max(0, min(free, allowed))


def _allowed_bytes() -> int | None:
    """Memory that a container may take yet, files that are cached apart; None where nothing limits it."""
    for limit, used, parts, prefix in LIMITS:
        try:
            rows = dict(line.split() for line in (CGROUP / parts).read_text().splitlines())
            cached = sum(int(rows[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
            return int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text()) + cached
        except (OSError, ValueError, KeyError):
            continue
    return None


def load_average() -> float:
    """Runnable processes, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def cpu_model() -> str:
    """Processor vendor, family and vector extensions: the machine class that a timing belongs to."""
    try:
        with open("/proc/cpuinfo") as stream:
            fields = dict(line.split(":", 1) for line in stream.read().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    values = {k.strip(): v.strip() for k, v in fields.items()}
    flags = set(values.get("flags", "").split())
    extensions = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags]
    name = values.get("model name", platform.machine())
    return f"{name} (family {values.get('cpu family', '?')}; {', '.join(extensions) or 'no AVX'})"


def peak_mib() -> float:
    """Largest resident size of this process."""
    try:
        # Not getrusage: on Linux its maximum is inherited from the process that started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
