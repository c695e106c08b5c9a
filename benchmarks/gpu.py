"""cmerc on one GPU: a training step, and inference on every path that exists, at published dimensions.

    python3 -m benchmarks.gpu --out DIR [--network cmerc_iemocap] [--batch 1 --batch 16]

Every part stands alone: one whose package or device is missing is written down as skipped with the reason, one that
breaks as failed, and the others still run. On a machine without a GPU the suite runs to its end and says that
nothing was measured; `--device cpu` rehearses the parts that need no CUDA (its numbers mean nothing for a GPU).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite import NETWORKS, random_bundle
from mer_export.bundle import Bundle, write_atomic
from mer_export.contract import Lengths
from mer_export.errors import NotAvailableError
from mer_export.exporters import export_variant
from mer_export.exporters.job import random_inputs
from mer_export.weights import bundle_model
from runtimes import machine, open_session
from runtimes.session import SessionOptions
from runtimes.tables import table
from runtimes.timing import interleave, ratio, warm_up

Calls = dict[str, Callable[[], Any]]
PAUSE = 0.002
CMERC = [name for name, network in NETWORKS.items() if network.system == "cmerc"]


class SkippedError(Exception):
    """A part cannot run here; the message says why."""


@dataclass
class Setting:
    """What every part gets: a bundle with random weights, one batch of inputs, where to run and how long."""

    bundle: Bundle
    lengths: Lengths
    batch: int
    device: str
    rounds: int
    arrays: dict[str, np.ndarray]

    def model(self) -> Any:
        return bundle_model(self.bundle).to(self.device)

    def tensors(self) -> list[Any]:
        import torch

        return [torch.from_numpy(self.arrays[s.name]).to(self.device) for s in self.bundle.manifest.contract.inputs]

    def need_cuda(self) -> None:
        if self.device != "cuda":
            raise SkippedError("this path exists on CUDA only")

    def wait(self) -> None:
        """Until the device has done everything; a launch alone is no result."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def timed(self, calls: Calls) -> list[dict[str, Any]]:
        """Interleaved times of `calls`; ratios are to the first one."""
        waiting = {name: self._waiting(call) for name, call in calls.items()}
        warmed = {name: warm_up(call, seconds=5).model_dump() for name, call in waiting.items()}
        turns = interleave(waiting, self.rounds, PAUSE)
        base = next(iter(calls))
        return [
            {
                "name": name,
                "latency": turns[name].latency().model_dump(),
                "ratio": ratio(turns[base], turns[name]).model_dump(),
                "items_per_s": 1000 * self.batch / turns[name].latency().p50,
                "warm_up": warmed[name],
            }
            for name in calls
        ]

    def _waiting(self, call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            call()
            self.wait()

        return run


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Lets matrix products and recurrent layers round to TF32 inside the block."""
    import torch

    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@contextlib.contextmanager
def precision(setting: Setting, name: str) -> Iterator[None]:
    """fp32, tf32 or bf16 (autocast)."""
    import torch

    with tf32(name == "tf32"), torch.autocast(setting.device, torch.bfloat16, enabled=name == "bf16"):
        yield


def training_step(setting: Setting) -> list[dict[str, Any]]:
    """Forward, negative log-likelihood over the real utterances, backward, Adam."""
    import torch

    tensors, model = setting.tensors(), setting.model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    lengths = torch.from_numpy(setting.arrays["lengths"]).to(setting.device)
    steps = next(iter(setting.lengths.values()))
    inside = torch.arange(steps, device=setting.device) < lengths[:, None]
    labels = torch.randint(0, len(setting.bundle.manifest.task.labels), inside.shape, device=setting.device)

    def step(kind: str) -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision(setting, kind):
            log_prob = model(*tensors)
        torch.nn.functional.nll_loss(log_prob.float()[inside], labels[inside]).backward()
        optimizer.step()

    kinds = ("fp32", "tf32", "bf16") if setting.device == "cuda" else ("fp32", "bf16")
    return setting.timed({f"training step {k}": partial(step, k) for k in kinds})


def eager_inference(setting: Setting) -> list[dict[str, Any]]:
    """The network as it stands, inputs on the device already."""
    model, tensors = setting.model(), setting.tensors()
    kinds = ("fp32", "tf32", "bf16") if setting.device == "cuda" else ("fp32", "bf16")
    return setting.timed({f"eager {k}": partial(_forward, setting, model, tensors, k) for k in kinds})


def compiled_inference(setting: Setting) -> list[dict[str, Any]]:
    """torch.compile, which captures CUDA graphs itself in this mode."""
    import torch

    setting.need_cuda()
    model, tensors = setting.model(), setting.tensors()
    compiled = torch.compile(model, mode="reduce-overhead")
    return setting.timed(
        {
            "eager fp32": lambda: _forward(setting, model, tensors, "fp32"),
            "torch.compile reduce-overhead": lambda: _forward(setting, compiled, tensors, "fp32"),
        }
    )


def graph_inference(setting: Setting) -> list[dict[str, Any]]:
    """One manual CUDA graph: fixed lengths and batch are all that it takes."""
    import torch

    setting.need_cuda()
    model, tensors = setting.model(), setting.tensors()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            _forward(setting, model, tensors, "fp32")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = model(*tensors)
    graph.replay()
    setting.wait()
    difference = float((captured - _forward(setting, model, tensors, "fp32")).abs().max())
    rows = setting.timed(
        {"eager fp32": lambda: _forward(setting, model, tensors, "fp32"), "manual CUDA graph": graph.replay}
    )
    return [*rows, {"name": "manual CUDA graph", "max_abs_difference": difference}]


def exported_inference(setting: Setting) -> list[dict[str, Any]]:
    """TorchScript and ONNX Runtime from host arrays to host arrays, as a service would call them."""
    setting.need_cuda()
    return _sessions(
        setting,
        [
            ("torchscript", "torchscript", {}),
            ("onnxruntime", "onnx", {}),
            ("onnxruntime", "onnx", {"tf32": True}),
            ("onnxruntime", "onnx", {"cuda_graph": True}),
        ],
    )


def tensorrt_probe(setting: Setting) -> list[dict[str, Any]]:
    """Does an engine build, load and run on this GPU, and is it right? The answer takes about a minute."""
    setting.need_cuda()
    return _sessions(setting, [("tensorrt", "tensorrt", {})])


PARTS: dict[str, Callable[[Setting], list[dict[str, Any]]]] = {
    "training step": training_step,
    "eager": eager_inference,
    "torch.compile": compiled_inference,
    "manual CUDA graph": graph_inference,
    "TorchScript and ONNX Runtime": exported_inference,
    "TensorRT": tensorrt_probe,
}


def _forward(setting: Setting, model: Any, tensors: list[Any], kind: str) -> Any:
    import torch

    with torch.no_grad(), precision(setting, kind):
        return model(*tensors)


def _sessions(setting: Setting, asked: list[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Times sessions on the GPU against the eager one, and holds their outputs against it; says what could not run."""
    output = setting.bundle.manifest.task.output
    skipped: list[dict[str, Any]] = []
    errors: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(open_session(setting.bundle, None, "torch", SessionOptions(device="cuda")))
        reference = base.run(setting.arrays)[output]
        calls: Calls = {"eager fp32, host to host": lambda: base.run(setting.arrays)}
        for backend, format, extra in asked:
            name = " ".join([backend, *(k for k, v in extra.items() if v)])
            try:
                variant = export_variant(setting.bundle, format, setting.lengths, setting.batch)
                options = SessionOptions(device="cuda", extra=extra)
                session = stack.enter_context(open_session(setting.bundle, variant, backend, options))
                errors[name] = float(np.abs(session.run(setting.arrays)[output] - reference).max())
            except Exception as error:
                # One runtime's failure must not cost the other measurements of this machine.
                skipped.append({"name": name, "skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
                continue
            calls[name] = partial(session.run, setting.arrays)
        rows = setting.timed(calls) if len(calls) > 1 else []
    return [row | {"max_abs_difference": errors.get(row["name"])} for row in rows] + skipped


def run_part(part: Callable[[Setting], list[dict[str, Any]]], setting: Setting) -> dict[str, Any]:
    """A part's rows, or why there are none."""
    try:
        return {"status": "measured", "rows": part(setting)}
    except (SkippedError, NotAvailableError, ImportError) as error:
        return {"status": "skipped", "reason": str(error)}
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return {"status": "failed", "reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def main(arguments: list[str] | None = None) -> None:
    """Runs every part for every network, bucket and batch; writes gpu.json and gpu.md."""
    parser = argparse.ArgumentParser(description="cmerc on one GPU at published dimensions")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--network", choices=CMERC, action="append", help="default: all")
    parser.add_argument("--batch", type=int, action="append", help="repeat for several; default 1 and 16")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    chosen = parser.parse_args(arguments)
    missing = _problem(chosen.device)
    cases = []
    for network in chosen.network or CMERC:
        for batch in chosen.batch or [1, 16]:
            cases.append(_case(network, batch, chosen.device, chosen.rounds, missing))
    content = {"machine": machine.describe(), "device": chosen.device, "unmeasured": missing, "cases": cases}
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_atomic(chosen.out / "gpu.json", json.dumps(content, indent=1).encode())
    write_atomic(chosen.out / "gpu.md", markdown(content).encode())
    print(f"wrote {chosen.out / 'gpu.json'} and .md", file=sys.stderr)


def _problem(device: str) -> str | None:
    """Why nothing can be measured on this machine; None where something can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed: pip install 'mer[export]'"
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def _case(network: str, batch: int, device: str, rounds: int, missing: str | None) -> dict[str, Any]:
    lengths = NETWORKS[network].buckets[-1]
    case: dict[str, Any] = {"network": network, "lengths": lengths, "batch": batch}
    if missing:
        return case | {"parts": {name: {"status": "skipped", "reason": missing} for name in PARTS}}
    parts = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "bundle", NETWORKS[network])
        arrays = random_inputs(bundle.manifest.contract, lengths, batch)
        setting = Setting(bundle, lengths, batch, device, rounds, arrays)
        for name, part in PARTS.items():
            print(f"{network}, batch {batch}: {name}", file=sys.stderr, flush=True)
            parts[name] = run_part(part, setting)
    return case | {"parts": parts}


def markdown(content: dict[str, Any]) -> str:
    """One table per part that ran, one line per part that did not."""
    device = content["machine"]
    gpu = "; ".join(", ".join(g.values()) for g in device["gpu"]) or "no GPU"
    lines = ["# cmerc on a GPU", "", f"{gpu}; {device['cpu']}.", ""]
    lines.append(", ".join(f"{k} {v}" for k, v in device["versions"].items()) + f", Python {device['python']}.")
    if content["unmeasured"]:
        lines += ["", f"**Nothing was measured**: {content['unmeasured']}."]
    if content["device"] == "cpu":
        lines += ["", "**A rehearsal on the CPU: these times say nothing about a GPU.**"]
    for case in content["cases"]:
        size = ", ".join(f"{k} {v}" for k, v in case["lengths"].items())
        lines += ["", f"## {case['network']}, {size}, batch {case['batch']}"]
        for name, part in case["parts"].items():
            lines += ["", f"### {name}: {part['status']}", ""]
            lines += [part["reason"]] if "reason" in part else table(HEADER, [_row(r) for r in part["rows"]])
    return "\n".join(lines) + "\n"


HEADER = ("path", "p50 ms", "p90 ms", "items/s", "x first row", "max abs difference")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    difference = row.get("max_abs_difference")
    last = "–" if difference is None else f"{difference:.1e}"
    if "latency" not in row:
        return (row["name"], "–", "–", "–", row.get("skipped", "–"), last)
    spread = row["ratio"]
    return (
        row["name"],
        f"{row['latency']['p50']:.3f}",
        f"{row['latency']['p90']:.3f}",
        f"{row['items_per_s']:.0f}",
        f"{spread['median']:.2f} [{spread['q25']:.2f}, {spread['q75']:.2f}]",
        last,
    )


if __name__ == "__main__":
    main()
