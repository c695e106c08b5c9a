"""What a user types, on what `training.runs` trained: export, then infer on the device and on the CPU."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import ALL, Results, SkippedError
from benchmarks.gpu.training import synthetic_data
from mer_export.errors import NotAvailableError
from mer_export.launcher import module_command

RUNTIMES = {
    "torch": None,
    "onnxruntime": "onnx",
    "torchscript": "torchscript",
    "exported_program": "exported_program",
}
"""Runtime to the format that it needs."""


def infer(results: Results, kept: Path, systems: Sequence[str]) -> None:
    """`mer infer` with every runtime on the device; its labels beside those of eager PyTorch on the CPU."""
    for system in systems:
        about = {"part": "mer infer", "network": system}
        missing = {r: f for r, f in RUNTIMES.items() if not results.has(**about, way=r)}
        if not results.in_time or not missing:
            continue
        with results.piece(**about, way=ALL):
            bundle = kept / system
            if not (bundle / "bundle.json").is_file():
                raise SkippedError(f"{system} was not trained: run the part `training run` first")
            data = synthetic_data(kept, system)
            wanted, _ = _answers(bundle, data, kept, "torch", "cpu")
            for runtime, format in missing.items():
                if not results.in_time:
                    break
                with results.piece(**about, way=runtime):
                    if format:
                        _mer("export", bundle, "--format", format, "--quiet")
                    found, seconds = _answers(bundle, data, kept, runtime, results.device)
                    row = {"seconds": round(seconds, 2), "utterances": len(found)}
                    results.add([row | _difference(wanted, found)], **about, way=runtime)


def _answers(bundle: Path, data: Path, kept: Path, runtime: str, device: str) -> tuple[list[dict[str, Any]], float]:
    out, began = kept / "answers.jsonl", time.perf_counter()
    _mer("infer", bundle, data, "--out", out, "--runtime", runtime, "--device", device, "--force", "--quiet")
    seconds = time.perf_counter() - began
    return [json.loads(line) for line in out.read_text().splitlines()], seconds


def _difference(wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> dict[str, Any]:
    """How many labels differ, and by how much probabilities or scores at most."""
    flips = sum(a["label"] != b["label"] for a, b in zip(wanted, found, strict=True))
    values = [(_numbers(a), _numbers(b)) for a, b in zip(wanted, found, strict=True)]
    return {
        "labels_changed": flips,
        "max_abs_difference": max(abs(x - y) for a, b in values for x, y in zip(a, b, strict=True)),
    }


def _numbers(answer: dict[str, Any]) -> list[float]:
    return [*answer.get("probabilities", {}).values()] or [answer["score"]]


def _mer(*words: object) -> None:
    """Runs the command line in a process of its own.

    Raises:
        NotAvailableError: something is missing on this machine.
        RuntimeError: it fails; both with its last line.
    """
    done = subprocess.run(module_command("cli", *map(str, words)), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise (NotAvailableError if done.returncode == NotAvailableError.exit_code else RuntimeError)(said)
