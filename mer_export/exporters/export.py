"""One way to make a variant, whatever its format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from mer_export import registry
from mer_export.bucket import Bucket
from mer_export.bundle import CONFIG, Bundle, Variant, sha256
from mer_export.data.example_inputs import example_inputs
from mer_export.data.samples import Sample
from mer_export.errors import BundleError, UnsupportedError, UsageError
from mer_export.exporters import staged
from mer_export.exporters.export_job import ExportJob, Graph, write_samples
from mer_export.exporters.format import DEFAULT_OPSET, OPSETS, ExportFormat, export_formats
from mer_export.exporters.precision import PRECISIONS
from mer_export.kept import Kept
from mer_export.reference import run_model
from mer_export.stages import Stage
from mer_export.trust import mark
from mer_export.untrusted.yaml_files import read_yaml

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("mer")

KEPT = "keep_fp32"
"""Entry of a recipe, and option of a variant of a reduced precision: the modules that it has in fp32."""


def export_variant(
    bundle: Bundle,
    format: str,
    lengths: Mapping[str, int],
    batch: int = 0,
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
    force: bool = False,
    example: Sequence[Sample] | None = None,
    stages: bool = False,
    device: str = "cpu",
    keep_fp32: Sequence[str] | None = None,
    noted: Mapping[str, Any] | None = None,
) -> Variant:
    """Exports one variant into the bundle and returns it; an up-to-date one is left as it is unless `force`.

    Args:
        bundle: opened bundle.
        format: a name in `export_formats()`.
        lengths: the bucket, one length per sequence dim.
        batch: fixed batch size; 0 for dynamic (1 in formats that have none).
        precision: one that the format has; other than fp32 it must answer as fp32 does, within a bound.
        opset: ONNX opset 18-22, where the format has one.
        force: export again what is there.
        example: real samples, a few of which become the example inputs kept under samples/; a reduced precision is
            held against fp32 on all of them.
        stages: export the stages of the network apart, for systems that have some; fp32 and a dynamic batch only.
        device: cpu or cuda, in formats that have a form for each: both run on both and give the same answers.
        keep_fp32: modules of the network that a reduced precision leaves in fp32, with their parts; None for those of
            the recipe that the bundle was trained by.
        noted: further options that the variant remembers.

    Raises:
        UsageError: unknown format, bad lengths, or an export that does not reproduce the model.
        UnsupportedError: precision, opset or form that does not exist.
        ParityError: a reduced precision that changes the answers too much, with the numbers.
        NotAvailableError: a package that the format needs is missing.
    """
    record = check_request(bundle, format, lengths, batch, precision, opset, stages, device)
    made_from = _made_from(bundle, record, opset, device)
    wanted = _wanted(bundle, record, format, precision, lengths, batch, stages, made_from)
    bucket, parts = wanted.lengths, _stages(bundle) if stages else ()
    keep = _kept(bundle, format, precision, keep_fp32)
    kept = {KEPT: list(keep)} if keep else {}
    there = _existing(bundle, wanted.name)
    if there and not force and _up_to_date(there, made_from, keep):
        log.info("%s is up to date, pass --force to export it again", there.name)
        return there
    job = _job(bundle, wanted, opset, example, _fp32_graph(bundle, wanted, made_from))
    job = replace(job, keep_fp32=keep)
    folder = f"variants/{wanted.name}"
    samples = f"samples/{bucket.name}.npz"
    with bundle.commit() as change:
        exporter = registry.resolve(record.exporter)
        files = [f"{folder}/{p.name}/{record.file}" for p in parts] or [f"{folder}/{record.file}"]
        paths = [change.file(f) for f in files]
        exported = staged.export(job, parts, exporter, paths) if parts else exporter(job, paths[0])
        model = files[-1]
        if record.shares_weights and not parts:
            from mer_export.exporters.graph.external_data import share_weights

            model = share_weights(bundle, change, wanted, paths[0])
        variant = wanted.model_copy(
            update={
                "model": model,
                "exporter": exported.exporter,
                "options": made_from | kept | dict(noted or {}) | exported.options,
            }
        )
        if record.program:
            variant = mark(variant, {f: sha256(p) for f, p in zip(files, paths, strict=True)})
        if samples not in bundle.manifest.files or example or not _answered(bundle, bucket, made_from):
            write_samples(job, change.file(samples))
        change.add_variant(variant)
    log.info("exported %s", variant.name)
    return variant


def planned(
    bundle: Bundle,
    request: tuple[str, str, Bucket, int],
    opset: int,
    force: bool,
    stages: bool,
    device: str = "cpu",
    keep_fp32: Sequence[str] | None = None,
) -> tuple[Variant, str]:
    """The variant that a request of `requests` would make, without its file, and what would become of it."""
    format, precision, lengths, batch = request
    record = export_formats()[format]
    made_from = _made_from(bundle, record, opset, device)
    wanted = _wanted(bundle, record, format, precision, lengths, batch, stages, made_from)
    there = _existing(bundle, wanted.name)
    if there is None:
        return wanted, "new"
    current = not force and _up_to_date(there, made_from, _kept(bundle, format, precision, keep_fp32))
    return wanted, "up to date" if current else "exported again"


def _wanted(
    bundle: Bundle,
    record: ExportFormat,
    format: str,
    precision: str,
    lengths: Mapping[str, int],
    batch: int,
    stages: bool,
    made_from: dict[str, Any],
) -> Variant:
    bucket = bundle.manifest.contract.bucket(lengths)
    if registry.get(bundle.manifest.system).file:
        batch = _file(bundle, bucket).batch
    return Variant(
        format=format,
        precision=precision,
        lengths=bucket,
        batch=batch or (0 if record.dynamic_batch else 1),
        model="",
        exporter="",
        stages=tuple(p.name for p in _stages(bundle)) if stages else (),
        options=made_from,
    )


def _file(bundle: Bundle, bucket: Bucket) -> Variant:
    """The file of a bundle that has no network, for a bucket; raises UnsupportedError where nothing rewrites it."""
    for variant in bundle.manifest.variants:
        if (variant.format, variant.precision, variant.lengths) == ("onnx", "fp32", bucket):
            return variant
    raise UnsupportedError(
        f"{bundle.root} is a program of TorchScript, which nothing rewrites: give mer encoder an ONNX file of it"
    )


def _made_from(bundle: Bundle, record: ExportFormat, opset: int, device: str) -> dict[str, Any]:
    if registry.get(bundle.manifest.system).file:
        return {"weights": bundle.manifest.variants[0].options["weights"]}
    found = {"weights": bundle.manifest.weights.sha256} | ({"opset": opset} if record.uses_opset else {})
    return found | ({"device": device} if device != "cpu" else {})


def _up_to_date(there: Variant, made_from: Mapping[str, Any], keep: Sequence[str]) -> bool:
    return all(there.options.get(k) == v for k, v in made_from.items()) and there.options.get(KEPT, []) == [*keep]


def _answered(bundle: Bundle, bucket: Bucket, made_from: Mapping[str, Any]) -> bool:
    """Whether the samples of a bucket have the answers of these weights: a variant of both was exported."""
    there = (v.options.get("weights") for v in bundle.manifest.variants if v.lengths == bucket)
    return made_from["weights"] in there


def requests(
    bundle: Bundle,
    formats: Sequence[str],
    precisions: Sequence[str],
    sizes: Sequence[tuple[Bucket, int]],
    batch: int = 0,
    opset: int = DEFAULT_OPSET,
    stages: bool = False,
    device: str = "cpu",
) -> list[tuple[str, str, Bucket, int]]:
    """(format, precision, bucket, batch) of every combination; raises as `export_variant` does, before any work.

    A precision that one of the formats has is left out for those that do not, as long as they get another.
    `sizes` are buckets with the batch size that a fixed batch gets there; a format with a dynamic one keeps `batch`.
    """
    made = []
    for name, precision, (bucket, size) in product(formats, precisions, sizes):
        if _elsewhere(name, precision, formats, precisions):
            continue
        record = check_request(bundle, name, bucket, size, precision, opset, stages, device)
        made.append((name, precision, bucket, batch if record.dynamic_batch else size))
    return made


def _elsewhere(name: str, precision: str, formats: Sequence[str], precisions: Sequence[str]) -> bool:
    """Whether a format lacks this precision, another one has it, and the format gets one that it has."""
    has = {f: export_formats()[f].precisions for f in formats if f in export_formats()}
    return (
        precision not in has.get(name, (precision,))
        and any(precision in own for own in has.values())
        and bool({*has[name]} & {*precisions})
    )


def check_request(
    bundle: Bundle,
    format: str,
    lengths: Mapping[str, int],
    batch: int,
    precision: str,
    opset: int = DEFAULT_OPSET,
    stages: bool = False,
    device: str = "cpu",
) -> ExportFormat:
    """The format of a possible request; raises as `export_variant` does, before any work."""
    system = registry.get(bundle.manifest.system)
    if not system.file:
        system.require_network()
    elif format != "onnx" or precision == "fp32" or precision not in export_formats()[format].precisions:
        raise UnsupportedError(
            f"{bundle.root} is what its file is, in fp32: of an ONNX file other precisions are made, with "
            "--format onnx --precision int8 or fp16, and bf16 by --runtime openvino --precision bf16 without an export"
        )
    if format not in export_formats():
        raise UsageError(f"no format {format!r}, there are {list(export_formats())}")
    record = export_formats()[format]
    if precision not in record.precisions:
        advice = record.advice.get(precision, "")
        raise UnsupportedError(
            f"format {format} has no precision {precision!r}, it has {list(record.precisions)}{advice}"
        )
    if device != "cpu" and device not in record.devices:
        offered = [n for n, f in export_formats().items() if device in f.devices]
        raise UnsupportedError(
            f"format {format} has one form for every device: leave --device out, {device} has its own in {offered}"
        )
    if stages:
        _stages(bundle)
        if precision != "fp32" or batch or not record.dynamic_batch:
            offered = [n for n, f in export_formats().items() if f.dynamic_batch]
            raise UnsupportedError(f"stages are exported in fp32 with a dynamic batch, in formats {offered}")
    bucket = bundle.manifest.contract.bucket(lengths)
    if system.file:
        _file(bundle, bucket)
    if batch < 0:
        raise UsageError(f"batch must be 0 (dynamic) or more, not {batch}")
    if record.uses_opset and opset not in OPSETS:
        raise UnsupportedError(
            f"opset {opset} is not exported, runtimes fail on attention graphs from opset 23 on: "
            f"choose {OPSETS.start}-{OPSETS.stop - 1} (default {DEFAULT_OPSET})"
        )
    return record


def _stages(bundle: Bundle) -> tuple[Stage, ...]:
    system = registry.get(bundle.manifest.system)
    return system.stages_of(system.parse(bundle.manifest.config))


def _existing(bundle: Bundle, name: str) -> Variant | None:
    return next((v for v in bundle.manifest.variants if v.name == name), None)


def _fp32_graph(bundle: Bundle, wanted: Variant, made_from: dict[str, Any]) -> Graph | None:
    """The up-to-date fp32 ONNX variant of the same bucket and batch, which a reduced precision is rewritten from."""
    if wanted.precision == "fp32":
        return None
    there = _existing(bundle, wanted.model_copy(update={"format": "onnx", "precision": "fp32"}).name)
    if there is None or any(there.options.get(k) != v for k, v in made_from.items()):
        return None
    return Graph(bundle.variant_files(there), there.exporter, there.options)


def _kept(bundle: Bundle, format: str, precision: str, asked: Sequence[str] | None) -> Sequence[str]:
    """The modules that a variant has in fp32; a recipe's are left out where a format has none of its own choice."""
    if precision == "fp32":
        return ()
    if format in PRECISIONS[precision].formats:
        return _of_recipe(bundle) if asked is None else asked
    if asked:
        raise UnsupportedError(
            f"format {format} chooses by itself what {precision} is: leave {asked[0]} out, or export --format onnx"
        )
    return ()


def _of_recipe(bundle: Bundle) -> Sequence[str]:
    """What the recipe in a bundle keeps in fp32; raises BundleError where that is no list of names."""
    recipe = read_yaml(bundle.path(CONFIG)) if CONFIG in bundle.manifest.files else {}
    names = recipe.get(KEPT) or []
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise BundleError(f"{bundle.root}: {KEPT} of {CONFIG} is {names!r}, it must be a list of modules")
    return names


def job_of(bundle: Bundle, variant: Variant, example: Sequence[Sample] | None = None) -> ExportJob:
    """The job of a variant, as if it were exported again; without data its example is made of random values."""
    opset = variant.options.get("opset", DEFAULT_OPSET)
    made_from: dict[str, Any] = {k: variant.options[k] for k in ("weights", "opset", "device") if k in variant.options}
    job = _job(bundle, variant, opset, example, _fp32_graph(bundle, variant, made_from))
    return replace(job, keep_fp32=variant.options.get(KEPT, ()))


def wanted_variant(bundle: Bundle, name: str) -> Variant:
    """The variant of that name, or the one that a reduced precision of an fp32 ONNX variant would be.

    Raises:
        UsageError: neither exists.
    """
    if there := _existing(bundle, name):
        return there
    for fp32 in bundle.manifest.variants:
        if (fp32.format, fp32.precision) == ("onnx", "fp32") and not fp32.stages:
            for precision in export_formats()["onnx"].precisions:
                made = fp32.model_copy(update={"precision": precision, "model": ""})
                if made.name == name:
                    kept = {KEPT: [*_of_recipe(bundle)]}
                    return made.model_copy(update={"options": made.options | kept})
    known = [v.name for v in bundle.manifest.variants]
    raise UsageError(f"no variant {name!r} in {bundle.root}: there are {known}")


def _model(bundle: Bundle) -> nn.Module:
    """The network of a bundle without what only training needs."""
    from mer_export.weights import bundle_model

    model = bundle_model(bundle)
    for name in getattr(model, "training_only", ()):
        delattr(model, name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _answers(bundle: Bundle, wanted: Variant, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the file of a bundle without a network gives."""
    from mer_export.exporters.precision_gate import open_file, run_file

    file = _file(bundle, wanted.lengths)
    return run_file(open_file(bundle.variant_files(file)), bundle.manifest.contract, arrays, file.batch)


def _job(
    bundle: Bundle, wanted: Variant, opset: int, example: Sequence[Sample] | None, graph: Graph | None
) -> ExportJob:
    contract, system = bundle.manifest.contract, registry.get(bundle.manifest.system)
    if not example and system.examples:
        example = registry.resolve(system.examples)(bundle)
    arrays = example_inputs(contract, wanted.lengths, example)
    model = None if system.file else _model(bundle)
    return ExportJob(
        model=model,
        contract=contract,
        lengths=wanted.lengths,
        batch=wanted.batch,
        opset=opset,
        example=arrays,
        reference=run_model(model, contract, arrays) if model else _answers(bundle, wanted, arrays),
        precision=wanted.precision,
        device=wanted.device,
        task=bundle.manifest.task,
        samples=example or (),
        graph=graph,
        kept=Kept.beside(bundle.root),
    )
