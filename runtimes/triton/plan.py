"""Which models a repository of a bundle holds: one for each bucket, and the router that is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mer_export.bundle import Bundle, Variant
from mer_export.contract import BATCH, Contract
from mer_export.data.given import TOGETHER
from mer_export.errors import UnsupportedError, UsageError
from mer_export.task import Task
from runtimes.backends.admission import admit
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import find_backend
from runtimes.predict.machine_profile import Limits
from runtimes.predict.opening import measured, open_predictor, opened_as, share_out
from runtimes.predict.predictor import Predictor
from runtimes.triton import config as configs
from runtimes.triton import router
from runtimes.triton.config import ENGINES, VERSION, Answer, Engine, How

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
ITEMS = 64
"""Items that the router takes at once, unless the models of the buckets take more together."""
ROUTERS = 2
"""Routers at the least: one pads while what another one asked for is computed."""


@dataclass(frozen=True)
class Model:
    """A directory of the repository: files by their name in it, and the variant that runs there."""

    name: str
    config: Any
    files: dict[str, bytes]
    variant: Variant | None = None


@dataclass(frozen=True)
class Repository:
    """What is written: the router, which is asked, and a model for each bucket."""

    bundle: Bundle
    engine: Engine
    about: dict[str, Any]
    models: list[Model]
    notes: list[str] = field(default_factory=list)
    """What whoever serves it has to know."""


def plan(
    bundle: Bundle,
    name: str | None = None,
    runtime: str = "onnxruntime",
    options: SessionOptions = SessionOptions(),
    batch: int | None = None,
    precision: str | None = None,
    goal: str | None = None,
    workers: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Repository:
    """What a repository of a bundle holds.

    Args:
        bundle: opened bundle.
        name: what the router is called; the models of the buckets add theirs. None takes that of the bundle's folder.
        runtime: a name in `ENGINES`.
        options: device and threads of an instance.
        batch: items per call; None takes what was planned for a bucket, or 16.
        precision: of the variants, or what the runtime makes of fp32 ones; None is fp32, with a goal any.
        goal: `latency`, `throughput` or `budget=5ms`: batch, threads and workers are those of the machine profile.
        workers: instances of each model side by side; None is as the machine profile found most throughput, without
            one an instance for each core, on a GPU one.
        say: told what a goal chose.

    Raises:
        UsageError: the bundle holds no such variant, or options that do not go together.
        UnsupportedError: what Triton cannot run, or not right.
        UntrustedError: machine code that this user did not export.
    """
    name = bundle.root.resolve().name if name is None else name
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a model: pass --name with letters, digits, _, - and .")
    engine = _engine(runtime, options, precision)
    predictor = _predictor(bundle, runtime, options, batch, precision, goal, workers, say)
    if predictor.precision not in engine.precisions:
        raise _no_precision(runtime, predictor.precision, engine)
    variants = [v for v in map(predictor.variant, predictor.buckets) if v is not None]
    for variant in variants:
        _require_served(bundle, variant)
    contract, task = predictor.contract, predictor.task
    how = How(predictor.options, predictor.precision, predictor.workers)
    models: list[Model] = []
    buckets: list[dict[str, Any]] = []
    for variant in variants:
        size = predictor.batch_for(variant.lengths)
        own = f"{name}-{variant.lengths.name}"
        written = configs.bucket_config(own, engine, how, contract, variant.lengths, size, bool(variant.batch))
        warm_up = {f"{configs.WARM_UP}/{n}": b for n, b in configs.warm_up_data(written, contract, variant.lengths)}
        models.append(Model(own, written, warm_up, variant))
        batched, filled = bool(written.max_batch_size), bool(variant.batch)
        buckets.append(
            {"model": own, "lengths": dict(variant.lengths), "batch": size, "filled": filled, "batched": batched}
        )
    answers = answers_of(contract, task)
    most = max(ITEMS, how.instances * max(b["batch"] for b in buckets))
    asked = configs.router_config(
        name, contract, (*contract.outputs, *answers), task.labels, most, max(ROUTERS, how.instances)
    )
    said = json.dumps(contract_of(contract, task, answers, buckets), indent=1).encode()
    source = Path(router.__file__).read_bytes()
    head = Model(name, asked, {f"{VERSION}/model.py": source, f"{VERSION}/contract.json": said})
    about = {
        "router": name,
        "runtime": runtime,
        "precision": predictor.precision,
        "device": how.options.device,
        "instances": how.instances,
        "threads": how.options.threads,
        "models": {
            b["model"]: {"variant": v.name, "batch": b["batch"]} for b, v in zip(buckets, variants, strict=True)
        },
    }
    return Repository(bundle, engine, about, [head, *models], _notes(predictor, engine))


def contract_of(
    contract: Contract, task: Task, answers: Sequence[Answer], buckets: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the router has to know, as JSON."""
    kept = {"name", "dtype", "dims", "modality", "counts", "below", "padding"}
    together = [n for n in TOGETHER if n in {s.name for s in contract.features}]
    return {
        "inputs": [s.model_dump(mode="json", include=kept) for s in contract.inputs],
        "outputs": [s.model_dump(mode="json", include=kept) for s in contract.outputs],
        "answers": [{"name": a.name, "dtype": a.dtype, "dims": list(a.dims)} for a in answers],
        "buckets": list(buckets),
        "modalities": list(contract.modalities),
        "unit_dim": contract.unit_dim,
        "shortest": contract.shortest,
        "fill": {d: f.model_dump(mode="json") for d, f in contract.fill.items()},
        "together": together if len(together) == len(TOGETHER) else [],
        "shared": {name: rows.tolist() for name, rows in contract.shared_arrays.items()},
        "shared_dims": {s.name: s.dims[0] for s in contract.inputs if not s.batched},
        "width": task.width,
        "cuts": task.cuts.tolist() if task.kind == "multilabel" else [],
        "task": task.model_dump(mode="json", include={"kind", "output", "labels", "limits", "edges"}),
    }


def answers_of(contract: Contract, task: Task) -> list[Answer]:
    """What the router says beside the outputs of the network: labels, and what stands behind them.

    Raises:
        UnsupportedError: an output of the network has one of these names.
    """
    if not task.decides:
        return []
    units = () if contract.unit_dim is None else (contract.unit_dim,)
    found = [Answer("label", "bytes", (BATCH, *(units or (1,))))]
    if task.kind != "regression":
        found.append(Answer("probability", "float32", (BATCH, *units, len(task.labels))))
    if task.kind == "multilabel":
        found.append(Answer("holds", "bool", (BATCH, *units, len(task.labels))))
    taken = {s.name for s in contract.outputs} & {a.name for a in found}
    if taken:
        raise UnsupportedError(f"this network calls an output {min(taken)!r}, which is an answer of the router")
    return found


def _engine(runtime: str, options: SessionOptions, precision: str | None) -> Engine:
    find_backend(runtime)
    engine = ENGINES.get(runtime)
    if engine is None:
        raise UnsupportedError(f"--runtime {runtime}: what runs in Triton is one of {list(ENGINES)}")
    if options.kind not in engine.devices:
        raise UnsupportedError(
            f"Triton runs {engine.backend} on {' and '.join(engine.devices)}: pass --device {engine.devices[0]}"
        )
    if precision is not None and precision not in engine.precisions:
        raise _no_precision(runtime, precision, engine)
    return engine


def _no_precision(runtime: str, precision: str, engine: Engine) -> UnsupportedError:
    return UnsupportedError(
        f"{runtime} in Triton does not compute in {precision}: pass --precision with one of {list(engine.precisions)}"
    )


def _predictor(
    bundle: Bundle,
    runtime: str,
    options: SessionOptions,
    batch: int | None,
    precision: str | None,
    goal: str | None,
    workers: int | None,
    say: Callable[[str], None] | None,
) -> Predictor:
    """What chooses variants and batches as everywhere; nothing is loaded."""
    if goal is not None:
        return open_predictor(bundle, runtime, options, batch, precision, goal, say, workers)
    limits = Limits(runtime, precision or "fp32", options.threads, batch, options.device)
    if workers is None and (found := measured(bundle, limits)):
        return opened_as(bundle, *found, say, "as mer tune found")
    threads, count = share_out(options.device, options.threads, workers)
    options = SessionOptions(options.device, threads)
    wanted = precision or "fp32"
    record = find_backend(runtime)
    stored = record.stored(wanted, options.kind)
    able = [v for v in record.usable(bundle.manifest.variants, options.kind) if v.precision == stored]
    whole = [v for v in able if not v.stages]
    for variant in able:
        if variant.lengths not in {v.lengths for v in whole}:
            raise _staged(bundle, variant)
    return Predictor(bundle, runtime, options, batch, precision=wanted, variants=whole or None, workers=count)


def _staged(bundle: Bundle, variant: Variant) -> UnsupportedError:
    lengths = ",".join(f"{d}={n}" for d, n in variant.lengths.items())
    return UnsupportedError(
        f"{bundle.root}: {variant.name} is in stages, which are no one model for Triton: "
        f"run mer export --format {variant.format} --precision {variant.precision} --seq-len {lengths} without --stages"
    )


def _require_served(bundle: Bundle, variant: Variant) -> None:
    """Raises for a variant that Triton cannot run, or that nobody vouches for."""
    if variant.stages:
        raise _staged(bundle, variant)
    flavour = variant.options.get("engine_key", {}).get("flavour", "tensorrt")
    if flavour != "tensorrt":
        raise UnsupportedError(
            f"{bundle.root}: {variant.name} is an engine of {flavour}, which Triton has no backend for: export it "
            "where regular TensorRT is installed, or pass --runtime onnxruntime --device cuda"
        )
    with bundle.reading():
        bundle.variant_files(variant)
        admit(bundle, variant)


def _notes(predictor: Predictor, engine: Engine) -> list[str]:
    """What is not as whoever serves it may expect."""
    manifest, found = predictor.bundle.manifest, []
    tokens = [s.name for s in predictor.contract.features if s.dtype == "int64" and s.below and s.modality]
    if tokens:
        found.append(f"the router takes {', '.join(tokens)}, not sentences: tokenise as the bundle does")
    if manifest.encoders:
        found.append(f"encoders stay in the bundle: the router takes features of {', '.join(manifest.encoders)}")
    if engine is ENGINES["openvino"] and predictor.precision == "fp32":
        found.append(
            "on processors with bf16 Triton's OpenVINO computes fp32 in bf16 and has no setting against it: "
            "compare its answers there, or take --runtime onnxruntime"
        )
    if engine is ENGINES["tensorrt"]:
        keys = [v.options.get("engine_key", {}) for v in map(predictor.variant, predictor.buckets) if v]
        needs = sorted({f"TensorRT {k.get('version')} on {k.get('gpu')}" for k in keys})
        found.append(f"the engines need {' and '.join(needs)}: take the release of Triton that has it")
    return found
