"""What a user would do without this project, timed in the same run: on the same network, inputs and machine.

    python3 -m benchmarks.peers --out benchmarks/results [--network emt_mosi] [--batch 1] [--environments DIR]

Peers are PyTorch as it stands, `torch.compile`, PyTorch's ONNX exporter with a default session of ONNX Runtime, and
ONNX Runtime's own dynamic quantisation of that file; what a peer cannot do is written down with its reason.
With `--environments` also NVIDIA Model Navigator, on that file, and optimum-onnx, on the encoder of networks that are
little else: each works in a virtual environment of its own below DIR, and the file that it gives back is timed here, in
a default session. Writes `<network>-peers.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environments, output
from benchmarks.environments import Installed, Tool
from benchmarks.suite import NETWORKS, random_bundle
from mer_export.agreement.error import OutputError, output_error
from mer_export.agreement.policy import Policy
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.example_inputs import random_inputs
from mer_export.errors import MerError, NotAvailableError
from mer_export.exporters import export_variant
from mer_export.layers.signature import by_position
from mer_export.markdown import table
from mer_export.weights import bundle_model
from runtimes.backends.session import Reduced, SessionOptions
from runtimes.backends.table import open_session
from runtimes.parity.report import used_part
from runtimes.speed.timing import interleave, ratio, warm_up

Arrays = dict[str, np.ndarray]
Call = Callable[[], np.ndarray]
BASE = "PyTorch eager"
QUANTISED = "the same + quantize_dynamic"
OURS: tuple[tuple[str, str, str, Reduced | None], ...] = (
    ("mer: ONNX Runtime fp32", "onnxruntime", "fp32", None),
    ("mer: ONNX Runtime int8", "onnxruntime", "int8", None),
    ("mer: OpenVINO fp32", "openvino", "fp32", None),
    ("mer: OpenVINO bf16", "openvino", "fp32", "bf16"),
    ("mer: OpenVINO int8", "openvino", "fp32", "int8"),
)
PRECISIONS = {QUANTISED: "int8"} | {name: lowered or precision for name, _, precision, lowered in OURS}
"""What a way computes in, where that is not fp32."""


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
        tools = environments.TOOLS if chosen.environments else ()
        installed = {tool: environments.install(tool, chosen.environments) for tool in tools}
        for name in chosen.network or NETWORKS:
            found = {"command": line} | measure(name, chosen.batch, chosen.threads, chosen.rounds, installed)
            output.write(chosen.out, f"{name}-peers", found, markdown(name, found))

    output.end_well(run)


def measure(
    name: str, batch: int, threads: int, rounds: int, tools: Mapping[Tool, tuple[Path, Installed]]
) -> dict[str, Any]:
    """Every peer and every runtime of this project on one batch of the longest bucket."""
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        folder, network = Path(root), NETWORKS[name]
        bundle = random_bundle(folder / name, network)
        bucket = network.buckets[-1]
        arrays = random_inputs(bundle.manifest.contract, bucket, batch)
        np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
        if network.roberta:
            (folder / "encoder.json").write_text(json.dumps(network.roberta))
        answer = [s.name for s in bundle.manifest.contract.outputs].index(bundle.manifest.task.output)
        others = {
            tool.name: Other(python, environments.SCRIPTS / tool.script, installed)
            for tool, (python, installed) in tools.items()
        }
        ways = (
            _peers(bundle, arrays, folder, threads)
            | {way: partial(other.make, folder, answer, threads) for way, other in others.items()}
            | _own(bundle, arrays, bucket, threads, stack)
        )
        rows, failed = compare(ways, rounds)
    return {
        "machine": output.here(),
        "threads": threads,
        "batch": batch,
        "lengths": dict(bucket),
        "rows": rows,
        "failed": failed,
        "tools": {way: asdict(other.installed) | {"did": other.did} for way, other in others.items()},
    }


def compare(ways: Mapping[str, Callable[[], Call]], rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One row for every way that can be made ready, timed in interleaved rounds, and the reasons of the others."""
    calls: dict[str, Call] = {}
    failed: dict[str, str] = {}
    prepared: dict[str, float] = {}
    for way, make in ways.items():
        output.say(way)
        start = time.perf_counter()
        try:
            call = make()
            call()
        except MerError as error:
            failed[way] = str(error)
        except Exception as error:
            # A peer that breaks is a finding, whatever it raises.
            failed[way] = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
        else:
            prepared[way], calls[way] = time.perf_counter() - start, call
    base = calls[BASE]()
    errors = {way: _error(way, call(), base) for way, call in calls.items()}
    for call in calls.values():
        warm_up(call)
    turns = interleave(calls, rounds)
    rows = [
        {
            "name": way,
            "prepare_s": round(prepared[way], 1),
            "p50_ms": turns[way].latency().p50,
            "ratio": ratio(turns[BASE], turns[way]).model_dump(),
            "max_abs": error and error.max_abs,
            "of_tolerance": error and error.used,
        }
        for way, error in errors.items()
    ]
    return rows, failed


def _error(way: str, own: np.ndarray, base: np.ndarray) -> OutputError | None:
    """How far it is from eager; None where a way gives something else, as an encoder alone does."""
    if own.shape != base.shape:
        return None
    return output_error(way, [base], [own], *Policy().tolerance(PRECISIONS.get(way, "fp32"), way))


@dataclass
class Other:
    """A tool with an environment of its own, on one network."""

    python: Path
    script: Path
    installed: Installed
    limit: float = environments.RUN_S
    did: str = ""
    """What it says that it has done."""

    def make(self, given: Path, answer: int, threads: int) -> Call:
        """A default session of the file that the tool makes of those in `given`, with `answer` among its outputs."""
        if self.installed.problem:
            raise NotAvailableError(self.installed.problem)
        out = given / self.script.stem
        made = environments.run(self.python, self.script, given, out, threads, self.limit)
        self.did = made.did
        with np.load(made.feed or given / "inputs.npz") as arrays:
            return default_session(made.model, dict(arrays), 0 if made.feed else answer, threads)


def default_session(path: Path, arrays: Arrays, answer: int, threads: int) -> Call:
    """ONNX Runtime as it is without options, but for the threads; gives output number `answer`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # The exporter drops inputs that the graph does not use, and names outputs as it likes.
    feed = {i.name: arrays[i.name] for i in loaded.get_inputs()}
    return lambda: loaded.run(None, feed)[answer]


def _peers(bundle: Bundle, arrays: Arrays, folder: Path, threads: int) -> dict[str, Callable[[], Call]]:
    """Ways that need nothing of this project but the network."""
    import torch

    contract = bundle.manifest.contract
    model = by_position(bundle_model(bundle), contract.inputs)
    tensors = tuple(torch.from_numpy(arrays[s.name]) for s in contract.inputs)
    position = [s.name for s in contract.outputs].index(bundle.manifest.task.output)
    plain = folder / "plain.onnx"

    def run(module: Any) -> np.ndarray:
        with torch.no_grad():
            found = module(*tensors)
        return (found[position] if isinstance(found, tuple) else found).numpy()

    def exported() -> Call:
        with torch.no_grad():
            torch.onnx.export(model, tensors, str(plain), dynamo=True)
        return default_session(plain, arrays, position, threads)

    def quantised() -> Call:
        from onnxruntime.quantization import quantize_dynamic

        target = plain.with_name("plain-int8.onnx")
        quantize_dynamic(str(plain), str(target))
        return default_session(target, arrays, position, threads)

    return {
        BASE: lambda: partial(run, model),
        "torch.compile": lambda: partial(run, torch.compile(model)),
        "torch.onnx.export + default session": exported,
        QUANTISED: quantised,
    }


def _own(
    bundle: Bundle, arrays: Arrays, bucket: Bucket, threads: int, stack: contextlib.ExitStack
) -> dict[str, Callable[[], Call]]:
    """Variants of this project on its runtimes."""
    answer = bundle.manifest.task.output

    def make(backend: str, precision: str, reduced: Reduced | None) -> Call:
        variant = export_variant(bundle, "onnx", bucket, precision=precision)
        opened = open_session(bundle, variant, backend, SessionOptions("cpu", threads, reduced))
        session = stack.enter_context(opened)
        return lambda: session.run(arrays)[answer]

    return {name: partial(make, backend, precision, reduced) for name, backend, precision, reduced in OURS}


def markdown(name: str, found: dict[str, Any]) -> str:
    """The results as one table."""
    size = ", ".join(f"{k} {v}" for k, v in found["lengths"].items())
    rows = [
        (
            row["name"],
            f"{row['prepare_s']:.1f}",
            f"{row['p50_ms']:.2f}",
            output.spread(row["ratio"], strong=True),
            "–" if row["max_abs"] is None else f"{row['max_abs']:.1e}",
            "–" if row["of_tolerance"] is None else used_part(row["of_tolerance"]),
        )
        for row in found["rows"]
    ]
    lines = [
        *output.head(f"{name} beside what else a user could do", found, found["threads"]),
        f"{size}, batch {found['batch']}; random weights; interleaved rounds. `prepare` is compiling or exporting (but "
        "for a file that a row above has made), loading and the first call; `differs` the largest difference of an "
        "output from eager PyTorch, – where a way gives another output; `of tolerance` the part of what `mer parity` "
        "allows its precision.",
        "",
        *table(("way", "prepare s", "p50 ms", "x eager", "differs", "of tolerance"), rows),
        "",
        *(f"- {way} failed: {reason}" for way, reason in found["failed"].items()),
        *(
            f"- {way}: version {tool['version']}, {tool['how']}" + (f"; {tool['did']}" if tool["did"] else "")
            for way, tool in found["tools"].items()
            if tool["version"]
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
