"""Training on the device: one step at the published size in each precision, and whole short runs of every system."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.device import free
from benchmarks.gpu.prepare import work_of
from benchmarks.gpu.rows import ALL, Results, Row
from benchmarks.gpu.timed import timed
from benchmarks.suite import NETWORKS
from mer_export.bundle import Bundle
from mer_export.data.example_inputs import random_inputs
from mer_export.data.synthetic import synthesise
from mer_export.layers.signature import by_position
from mer_export.weights import bundle_model
from runtimes.backends.eager import computing_in
from runtimes.backends.session import SessionOptions
from train.config import load_preset
from train.fit import fit
from train.state import METRICS

BACKWARD = 3
"""A step is about three forward passes: backward costs two."""
RUNS = {
    "cmerc": ("meld", "synthetic/cmerc_meld"),
    "emt": ("mosi", "synthetic/emt_mosi"),
    "mult": ("mosi", "synthetic/mult_mosi"),
    "tfr_net": ("mosi", "synthetic/tfr_net_mosi"),
    "mtee": ("iemocap", "synthetic/mtee_iemocap"),
    "tab": ("iemocap", "synthetic/tab_iemocap"),
    "facialmmt": ("meld", "synthetic/facialmmt_meld"),
}
"""System to the data set that is synthesised and the recipe that trains on it."""
EPOCHS = 2
ITEMS = 60


def steps(results: Results, folder: Path, network: str, batches: Sequence[int], rounds: int) -> None:
    """Forward, a plain loss of the task's kind on random targets, backward, Adam; inputs are on the device already."""
    bundle, bucket = Bundle.open(folder / network, trust=True), NETWORKS[network].buckets[-1]
    kinds = ("fp32", "tf32", "bf16") if results.device == "cuda" else ("fp32", "bf16")
    work = BACKWARD * (work_of(folder, network, bucket) or 0)
    for batch in batches:
        about = {"part": "training step", "network": network, "bucket": bucket.name, "batch": batch}
        if results.in_time and not results.has(**about):
            with results.piece(**about, way=ALL):
                arrays = random_inputs(bundle.manifest.contract, bucket, batch)
                calls = _steps(bundle, arrays, batch, results.device, kinds)
                rows = timed(calls, "fp32", {kind: kind for kind in kinds}, batch, rounds, work)
                results.add([row | _peak(calls[row["way"]], row, results.device) for row in rows], **about)
            free()


def _steps(
    bundle: Bundle, arrays: dict[str, np.ndarray], batch: int, device: str, kinds: tuple[str, ...]
) -> dict[str, Callable[[], None]]:
    import torch

    task, contract = bundle.manifest.task, bundle.manifest.contract
    model = by_position(bundle_model(bundle), contract.inputs).to(device).train()
    tensors = [torch.from_numpy(arrays[s.name]).to(device) for s in contract.inputs]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=device == "cuda")
    output = [s.name for s in contract.outputs].index(task.output)
    units = 1
    if contract.unit_dim:
        units = arrays[next(s.name for s in contract.inputs if s.counts == contract.unit_dim)].max()
    labels = torch.randint(0, task.width, (batch * int(units),), device=device)

    def step(kind: str) -> None:
        optimizer.zero_grad(set_to_none=True)
        reduced: Any = None if kind == "fp32" else kind
        with computing_in(SessionOptions(device=device, reduced=reduced)):
            found = model(*tensors)
            rows = found[output] if isinstance(found, tuple) else found
            # Inside: the kernels of a backward pass take the same switches.
            LOSSES[task.kind](rows.float().flatten(0, -2)[: len(labels), : task.width], labels).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return {kind: partial(step, kind) for kind in kinds}


def _peak(call: Callable[[], None], row: Row, device: str) -> Row:
    """MiB of the device that tensors took at most during a step that was timed."""
    import torch

    if device == "cpu" or "p50_ms" not in row:
        return {}
    torch.cuda.reset_peak_memory_stats()
    call()
    return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}


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


def runs(results: Results, kept: Path, systems: Sequence[str]) -> None:
    """Trains systems on synthetic data on the device and on the CPU; `kept` gets the bundles and the data.

    Both start from the same weights and see the same items: losses that differ by more than rounding and dropout
    account for would be a fault of the path.
    """
    for system in systems:
        about = {"part": "training run", "network": system}
        missing = [d for d in dict.fromkeys((results.device, "cpu")) if not results.has(**about, way=d)]
        if not results.in_time or not missing:
            continue
        with results.piece(**about, way=ALL):
            data = synthetic_data(kept, system)
            tokenizer = [f"data.tokenizer={data / 'tokenizer'}"] * (data / "tokenizer").is_dir()
            for device in missing:
                with tempfile.TemporaryDirectory() as folder:
                    out = kept / system if device == results.device else Path(folder) / system
                    sets = [f"epochs={EPOCHS}", f"device={device}", "precision=fp32", *tokenizer]
                    config = load_preset(RUNS[system][1], sets)
                    # From the start: what a rehearsal or a killed run left is of another device, or half of it.
                    bundle = fit(config, data, out, force=True, quiet=True)
                    last = json.loads(bundle.path(METRICS).read_text().splitlines()[-1])
                    row = {"way": device, "seconds": last["seconds"], "loss": last["train"]["total"]}
                    results.add([row], **about)


def synthetic_data(kept: Path, system: str) -> Path:
    """The data of a system, made where they are not there yet."""
    found = kept / f"{system}-data"
    if not found.exists():
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as folder:
            synthesise(system, RUNS[system][0], Path(folder) / "data", dialogues=ITEMS)
            (Path(folder) / "data").rename(found)
    return found
