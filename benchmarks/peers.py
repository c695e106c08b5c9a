"""What a user would do without this project, timed in the same run: on the same network, inputs and machine.

    python3 -m benchmarks.peers --out benchmarks/results [--network emt_mosi] [--batch 1] [--environments DIR]

Peers are PyTorch as it stands, `torch.compile`, PyTorch's ONNX exporter with a default session of ONNX Runtime, and
ONNX Runtime's own dynamic quantisation of that file; what a peer cannot do is written down with its reason.
`--environments` says whether NVIDIA Model Navigator and optimum-onnx install and import, each in a virtual environment
below DIR; they are not run. Writes `<network>-peers.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.suite import NETWORKS, random_bundle
from mer_export.bundle import Bundle
from mer_export.contract import Lengths
from mer_export.exporters import export_variant
from mer_export.exporters.job import random_inputs
from mer_export.weights import bundle_model
from runtimes import machine, open_session
from runtimes.session import Hint, SessionOptions
from runtimes.tables import table
from runtimes.timing import interleave, ratio, warm_up

Arrays = dict[str, np.ndarray]
Call = Callable[[], np.ndarray]
BASE = "PyTorch eager"
OURS: tuple[tuple[str, str, str, Hint], ...] = (
    ("mer: ONNX Runtime fp32", "onnxruntime", "fp32", "fp32"),
    ("mer: ONNX Runtime int8", "onnxruntime", "int8", "fp32"),
    ("mer: OpenVINO fp32", "openvino", "fp32", "fp32"),
    ("mer: OpenVINO bf16", "openvino", "fp32", "bf16"),
    ("mer: OpenVINO int8", "openvino", "fp32", "int8"),
)
PACKAGES = {"NVIDIA Model Navigator": "triton-model-navigator", "optimum-onnx": "optimum-onnx[onnxruntime]"}
MODULES = {"NVIDIA Model Navigator": "model_navigator", "optimum-onnx": "optimum.exporters.onnx"}
INSTALL_S = 900
INSTALLED = "installs and imports here; this suite does not run it"


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="repeat for several; default: all")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--environments", type=Path, help="where to make the virtual environments of other tools")
    chosen = parser.parse_args(arguments)
    line = output.command("peers", arguments)

    def run() -> None:
        others = _environments(chosen.environments) if chosen.environments else {}
        for name in chosen.network or NETWORKS:
            found = {"command": line} | measure(name, chosen.batch, chosen.threads, chosen.rounds) | {"others": others}
            output.write(chosen.out, f"{name}-peers", found, markdown(name, found))

    output.end_well(run)


def measure(name: str, batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """Every peer and every runtime of this project on one batch of the longest bucket."""
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bundle = random_bundle(Path(folder) / name, NETWORKS[name])
        lengths = NETWORKS[name].buckets[-1]
        arrays = random_inputs(bundle.manifest.contract, lengths, batch)
        calls: dict[str, Call] = {}
        failed: dict[str, str] = {}
        prepared: dict[str, float] = {}
        ways = _peers(bundle, arrays, Path(folder), threads) | _own(bundle, arrays, lengths, threads, stack)
        for way, make in ways.items():
            output.say(f"{name}: {way}")
            start = time.perf_counter()
            try:
                call = make()
                call()
            except Exception as error:
                # A peer that breaks is a finding, whatever it raises.
                failed[way] = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
                continue
            prepared[way], calls[way] = time.perf_counter() - start, call
        errors = {way: float(np.abs(call() - calls[BASE]()).max()) for way, call in calls.items()}
        for call in calls.values():
            warm_up(call)
        turns = interleave(calls, rounds)
    return {
        "machine": machine.describe(),
        "threads": threads,
        "batch": batch,
        "lengths": lengths,
        "rows": [
            {
                "name": way,
                "prepare_s": round(prepared[way], 1),
                "p50_ms": turns[way].latency().p50,
                "ratio": ratio(turns[BASE], turns[way]).model_dump(),
                "max_abs": errors[way],
            }
            for way in calls
        ],
        "failed": failed,
    }


def _peers(bundle: Bundle, arrays: Arrays, folder: Path, threads: int) -> dict[str, Callable[[], Call]]:
    """Ways that need nothing of this project but the network."""
    import torch

    model = bundle_model(bundle)
    contract = bundle.manifest.contract
    tensors = tuple(torch.from_numpy(arrays[s.name]) for s in contract.inputs)
    position = [s.name for s in contract.outputs].index(bundle.manifest.task.output)
    plain = folder / "plain.onnx"

    def run(module: Any) -> np.ndarray:
        with torch.no_grad():
            found = module(*tensors)
        return (found[position] if isinstance(found, tuple) else found).numpy()

    def session(path: Path) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # The exporter drops inputs that the graph does not use, and names outputs as it likes.
        feed = dict(zip([i.name for i in loaded.get_inputs()], (arrays[s.name] for s in contract.inputs), strict=True))
        return lambda: loaded.run(None, feed)[position]

    def exported() -> Call:
        with torch.no_grad():
            torch.onnx.export(model, tensors, str(plain), dynamo=True)
        return session(plain)

    def quantised() -> Call:
        from onnxruntime.quantization import quantize_dynamic

        target = plain.with_name("plain-int8.onnx")
        quantize_dynamic(str(plain), str(target))
        return session(target)

    return {
        BASE: lambda: partial(run, model),
        "torch.compile": lambda: partial(run, torch.compile(model)),
        "torch.onnx.export + default session": exported,
        "the same + quantize_dynamic": quantised,
    }


def _own(
    bundle: Bundle, arrays: Arrays, lengths: Lengths, threads: int, stack: contextlib.ExitStack
) -> dict[str, Callable[[], Call]]:
    """Variants of this project on its runtimes."""
    answer = bundle.manifest.task.output

    def make(backend: str, precision: str, hint: Hint) -> Call:
        variant = export_variant(bundle, "onnx", lengths, precision=precision)
        opened = open_session(bundle, variant, backend, SessionOptions("cpu", threads, hint))
        session = stack.enter_context(opened)
        return lambda: session.run(arrays)[answer]

    return {name: partial(make, backend, precision, hint) for name, backend, precision, hint in OURS}


def _environments(folder: Path) -> dict[str, str]:
    """What came of each tool that wants an environment of its own."""
    found = {}
    for name, package in PACKAGES.items():
        output.say(f"installing {package}")
        python = folder / name.replace(" ", "-").lower() / "bin" / "python"
        try:
            if not python.exists():
                subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True, capture_output=True)
            install = [str(python), "-m", "pip", "install", "--quiet", package]
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=INSTALL_S)
            check = [str(python), "-c", f"import {MODULES[name]}"]
            subprocess.run(check, check=True, capture_output=True, text=True, timeout=INSTALL_S)
            found[name] = INSTALLED
        except subprocess.TimeoutExpired:
            found[name] = f"not installed within {INSTALL_S} s"
        except subprocess.CalledProcessError as error:
            last = (error.stderr or "").strip().splitlines()[-1:] or [f"exit status {error.returncode}"]
            found[name] = f"does not run here: {last[0]}"
    return found


def markdown(name: str, found: dict[str, Any]) -> str:
    """The results as one table."""
    size = ", ".join(f"{k} {v}" for k, v in found["lengths"].items())
    rows = [
        (
            row["name"],
            f"{row['prepare_s']:.1f}",
            f"{row['p50_ms']:.2f}",
            f"**{row['ratio']['median']:.2f}** [{row['ratio']['q25']:.2f}, {row['ratio']['q75']:.2f}]",
            f"{row['max_abs']:.1e}",
        )
        for row in found["rows"]
    ]
    lines = [
        f"# {name} beside what else a user could do",
        "",
        f"`{found['command']}`",
        "",
        output.where(found["machine"], found["threads"]),
        f"{size}, batch {found['batch']}; random weights; interleaved rounds. `prepare` is compiling or exporting, "
        "loading and the first call; `differs` the largest difference of an output from eager PyTorch.",
        "",
        *table(("way", "prepare s", "p50 ms", "x eager", "differs"), rows),
        "",
        *(f"- {way} failed: {reason}" for way, reason in found["failed"].items()),
        *(f"- {way}: {reason}" for way, reason in found["others"].items()),
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
