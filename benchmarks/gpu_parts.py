"""What the GPU suite times: a training step, and inference on every path that exists. Every part stands alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mer_export.agreement.error import output_error
from mer_export.agreement.policy import Policy
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.exporters import export_variant
from mer_export.layers.signature import by_position
from mer_export.weights import bundle_model
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import open_session
from runtimes.speed.timing import interleave, ratio, warm_up

Calls = dict[str, Callable[[], Any]]
PAUSE = 0.002


class SkippedError(Exception):
    """A part cannot run here; the message says why."""


@dataclass
class Case:
    """What every part gets: a bundle with random weights, one batch of inputs, where to run and how long."""

    bundle: Bundle
    bucket: Bucket
    batch: int
    device: str
    rounds: int
    arrays: dict[str, np.ndarray]

    def model(self) -> Any:
        return by_position(bundle_model(self.bundle), self.bundle.manifest.contract.inputs).to(self.device)

    def tensors(self) -> list[Any]:
        import torch

        return [torch.from_numpy(self.arrays[s.name]).to(self.device) for s in self.bundle.manifest.contract.inputs]

    def need_cuda(self) -> None:
        if self.device != "cuda":
            raise SkippedError("this path exists on CUDA only")

    def wait(self) -> None:
        """Until the device has done everything; a launch alone is not a result."""
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
def precision(case: Case, name: str) -> Iterator[None]:
    """fp32, tf32 or bf16 (autocast)."""
    import torch

    with tf32(name == "tf32"), torch.autocast(case.device, torch.bfloat16, enabled=name == "bf16"):
        yield


def training_step(case: Case) -> list[dict[str, Any]]:
    """Forward, a loss of the task's kind on random targets of the real units, backward, Adam."""
    import torch

    task, contract = case.bundle.manifest.task, case.bundle.manifest.contract
    tensors, model = case.tensors(), case.model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    inside = torch.ones(case.batch, dtype=torch.bool, device=case.device)
    if contract.unit_dim:
        counts = next(s.name for s in contract.inputs if s.counts == contract.unit_dim)
        lengths = torch.from_numpy(case.arrays[counts]).to(case.device)
        inside = torch.arange(case.bucket[contract.unit_dim], device=case.device) < lengths[:, None]
    labels = torch.randint(0, task.width, (int(inside.sum()),), device=case.device)

    def step(kind: str) -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision(case, kind):
            rows = _output(case, model(*tensors))
        LOSSES[task.kind](rows.float()[inside][:, : task.width], labels).backward()
        optimizer.step()

    kinds = ("fp32", "tf32", "bf16") if case.device == "cuda" else ("fp32", "bf16")
    return case.timed({f"training step {k}": partial(step, k) for k in kinds})


def _classes(rows: Any, labels: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(rows, labels)


def _indicators(rows: Any, labels: Any) -> Any:
    from torch.nn import functional

    return functional.binary_cross_entropy_with_logits(rows, functional.one_hot(labels, rows.shape[-1]).float())


def _score(rows: Any, labels: Any) -> Any:
    return (rows[:, 0] - labels).abs().mean()


LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "classification": _classes,
    "multilabel": _indicators,
    "regression": _score,
}
"""A plain loss per kind of task: what a step costs does not hang on which one."""


def _output(case: Case, found: Any) -> Any:
    """The task's output of a forward pass."""
    names = [s.name for s in case.bundle.manifest.contract.outputs]
    return found[names.index(case.bundle.manifest.task.output)] if isinstance(found, tuple) else found


def eager_inference(case: Case) -> list[dict[str, Any]]:
    """The network as it stands, inputs on the device already."""
    model, tensors = case.model(), case.tensors()
    kinds = ("fp32", "tf32", "bf16") if case.device == "cuda" else ("fp32", "bf16")
    return case.timed({f"eager {k}": partial(_forward, case, model, tensors, k) for k in kinds})


def compiled_inference(case: Case) -> list[dict[str, Any]]:
    """torch.compile, which captures CUDA graphs itself in this mode."""
    import torch

    case.need_cuda()
    model, tensors = case.model(), case.tensors()
    compiled = torch.compile(model, mode="reduce-overhead")
    return case.timed(
        {
            "eager fp32": lambda: _forward(case, model, tensors, "fp32"),
            "torch.compile reduce-overhead": lambda: _forward(case, compiled, tensors, "fp32"),
        }
    )


def graph_inference(case: Case) -> list[dict[str, Any]]:
    """One manual CUDA graph: fixed lengths and batch are all that it takes."""
    import torch

    case.need_cuda()
    model, tensors = case.model(), case.tensors()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            _forward(case, model, tensors, "fp32")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = _output(case, model(*tensors))
    graph.replay()
    case.wait()
    replayed = _error("fp32", _forward(case, model, tensors, "fp32").cpu().numpy(), captured.cpu().numpy())
    rows = case.timed({"eager fp32": lambda: _forward(case, model, tensors, "fp32"), "manual CUDA graph": graph.replay})
    return [*rows, {"name": "manual CUDA graph"} | replayed]


def exported_inference(case: Case) -> list[dict[str, Any]]:
    """TorchScript and ONNX Runtime from host arrays to host arrays, as a service would call them."""
    case.need_cuda()
    return _sessions(
        case,
        [
            ("torch", None, "fp32", {"cuda_graph": True}),
            ("torchscript", "torchscript", "fp32", {}),
            ("onnxruntime", "onnx", "fp32", {}),
            ("onnxruntime", "onnx", "fp32", {"tf32": True}),
            ("onnxruntime", "onnx", "fp32", {"cuda_graph": True}),
            ("onnxruntime", "onnx", "fp16", {}),
            ("onnxruntime", "onnx", "fp16", {"cuda_graph": True}),
        ],
    )


def tensorrt_probe(case: Case) -> list[dict[str, Any]]:
    """Does an engine build, load and run on this GPU, and is it right? The answer takes about a minute."""
    case.need_cuda()
    return _sessions(case, [("tensorrt", "tensorrt", "fp32", {}), ("tensorrt", "tensorrt", "fp16", {})])


PARTS: dict[str, Callable[[Case], list[dict[str, Any]]]] = {
    "training step": training_step,
    "eager": eager_inference,
    "torch.compile": compiled_inference,
    "manual CUDA graph": graph_inference,
    "TorchScript and ONNX Runtime": exported_inference,
    "TensorRT": tensorrt_probe,
}


def _forward(case: Case, model: Any, tensors: list[Any], kind: str) -> Any:
    import torch

    with torch.no_grad(), precision(case, kind):
        return _output(case, model(*tensors))


def _sessions(case: Case, asked: list[tuple[str, str | None, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Times sessions on the GPU against the eager one, and holds their outputs against it; says what could not run."""
    output = case.bundle.manifest.task.output
    skipped: list[dict[str, Any]] = []
    errors: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(open_session(case.bundle, None, "torch", SessionOptions(device="cuda")))
        reference = base.run(case.arrays)[output]
        calls: Calls = {"eager fp32, host to host": lambda: base.run(case.arrays)}
        for backend, format, kind, more in asked:
            name = " ".join([backend, kind, *more])
            try:
                variant = export_variant(case.bundle, format, case.bucket, case.batch, kind) if format else None
                options = SessionOptions(device="cuda", **more)
                session = stack.enter_context(open_session(case.bundle, variant, backend, options))
                errors[name] = _error(kind, reference, session.run(case.arrays)[output])
            except Exception as error:
                # One runtime's failure must not cost the other measurements of this machine.
                skipped.append({"name": name, "skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
                continue
            calls[name] = partial(session.run, case.arrays)
        rows = case.timed(calls) if len(calls) > 1 else []
    return [row | errors.get(row["name"], {}) for row in rows] + skipped


def _error(precision: str, reference: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How far scores are from the reference, and which part of what their precision allows that is."""
    error = output_error(precision, [reference], [found], *Policy().tolerance(precision, precision))
    return {"max_abs_difference": error.max_abs, "of_tolerance": error.used}
