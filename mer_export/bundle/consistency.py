"""What the parts of a manifest have to say alike: a manifest that contradicts itself is damaged, or made to mislead."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from mer_export.bundle.manifest import JOURNAL, LOCK, MANIFEST, STAGING, Manifest, Variant
from mer_export.contract import BATCH, Contract, TensorSpec
from mer_export.errors import BundleError
from mer_export.task import Task

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
PART = re.compile(r"[a-z0-9_]+")
SHA256 = re.compile(r"[0-9a-f]{64}")
OWN = (MANIFEST, JOURNAL, LOCK)


def require_consistent(path: object, manifest: Manifest) -> None:
    """Raises BundleError for the first thing in a manifest that contradicts another."""
    problem = next(_problems(manifest), None)
    if problem:
        raise BundleError(f"{path} contradicts itself: {problem}: it was changed or is damaged")


def _problems(manifest: Manifest) -> Iterator[str]:
    contract = manifest.contract
    yield from _file_problems(manifest)
    yield from _contract_problems(contract)
    yield from _bucket_problems(contract)
    yield from _shared_problems(contract)
    yield from _task_problems(manifest.task, contract)
    widths = {s.name: s.dims[-1] for s in contract.inputs}
    for name, statistics in manifest.features.items():
        if widths.get(name) != statistics.width:
            yield f"features of {name} are {statistics.width} wide, the input {widths.get(name)}"
    yield from _twice((v.name for v in manifest.variants), "variant")
    for variant in manifest.variants:
        yield from _variant_problems(variant, manifest)


def _file_problems(manifest: Manifest) -> Iterator[str]:
    for name, entry in manifest.files.items():
        if entry.size < 0 or not SHA256.fullmatch(entry.sha256):
            yield f"{name} has size {entry.size} and SHA-256 {entry.sha256!r}"
        if name in OWN or name.partition("/")[0] == STAGING:
            yield f"{name} is listed as a file"


def _contract_problems(contract: Contract) -> Iterator[str]:
    specs = (*contract.inputs, *contract.outputs)
    if not contract.inputs or not contract.outputs:
        yield "there is no input or no output"
        return
    yield from _twice((s.name for s in specs), "tensor")
    for spec in specs:
        yield from _spec_problems(spec)
    if not all(s.batched for s in contract.outputs):
        yield "an output has no batch dim"
    if not contract.features:
        yield "no input brings values of its own"
    dims = set(contract.sequence_dims)
    for spec in specs:
        if spec.counts is not None and (spec.counts not in dims or spec.dims != (BATCH,) or spec.dtype != "int64"):
            yield f"{spec.name} counts {spec.counts} in {list(spec.dims)} of {spec.dtype}"
    for spec in contract.outputs:
        if unknown := [d for d in spec.dims if isinstance(d, str) and d != BATCH and d not in dims]:
            yield f"{spec.name} has a dim {unknown[0]!r} that no input has"


def _spec_problems(spec: TensorSpec) -> Iterator[str]:
    if not NAME.fullmatch(spec.name) or not spec.dims:
        yield f"a tensor is called {spec.name!r} and has dims {list(spec.dims)}"
        return
    sizes = [d for d in spec.dims if isinstance(d, int)]
    named = [d for d in spec.dims if isinstance(d, str)]
    if any(n < 1 for n in sizes) or not all(NAME.fullmatch(d) for d in named) or len(set(named)) != len(named):
        yield f"{spec.name} has dims {list(spec.dims)}"
    if spec.below is not None and (spec.below < 1 or spec.dtype != "int64"):
        yield f"{spec.name} is {spec.dtype} below {spec.below}"


def _bucket_problems(contract: Contract) -> Iterator[str]:
    dims = set(contract.sequence_dims)
    if set(contract.longest) != dims or any(n < 1 for n in contract.longest.values()):
        yield f"longest is {contract.longest}, the sequence dims are {sorted(dims)}"
        return
    if not contract.buckets:
        yield "there is no bucket"
    for bucket in contract.buckets:
        yield from _length_problems("a bucket", bucket, contract)
    for dim, size in contract.shortest.items():
        if dim not in dims or not 1 <= size <= contract.longest[dim]:
            yield f"shortest of {dim} is {size}"
    for dim, fill in contract.fill.items():
        if dim not in dims or not 1 <= fill.length <= contract.longest[dim]:
            yield f"{dim} is filled to {fill.length}"
    for dim in (*contract.whole, *contract.keeps_start):
        if dim not in dims:
            yield f"there is no sequence dim {dim!r}"


def _length_problems(who: str, lengths: Mapping[str, int], contract: Contract) -> Iterator[str]:
    if set(lengths) != set(contract.sequence_dims):
        yield f"{who} has lengths {dict(lengths)}, the sequence dims are {list(contract.sequence_dims)}"
        return
    for dim, size in lengths.items():
        if not 1 <= size <= contract.longest[dim]:
            yield f"{who} has {dim} {size}, the longest is {contract.longest[dim]}"


def _shared_problems(contract: Contract) -> Iterator[str]:
    shared = {s.name: s for s in contract.inputs if not s.batched}
    for spec in shared.values():
        if len(spec.dims) != 2 or not isinstance(spec.dims[0], str) or not isinstance(spec.dims[1], int):
            yield f"{spec.name}, which all items share, has dims {list(spec.dims)}"
    for name, rows in contract.shared.items():
        if name not in shared:
            yield f"there is no shared input {name!r}"
            return
        dim, width = str(shared[name].dims[0]), shared[name].dims[-1]
        if len(rows) > contract.longest.get(dim, 0):
            yield f"{name} has {len(rows)} rows, {dim} has {contract.longest.get(dim, 0)} at most"
        if any(len(row) != width or not all(map(math.isfinite, row)) for row in rows.values()):
            yield f"{name} has a row that is not {width} finite numbers"


def _task_problems(task: Task, contract: Contract) -> Iterator[str]:
    output = next((s for s in contract.outputs if s.name == task.output), None)
    if output is None or (output.dtype != "float32" and task.decides):
        yield f"the task reads {task.output!r}, the outputs are {[s.name for s in contract.outputs]}"
        return
    if (task.decides and not task.labels) or not all(n.strip() for n in task.labels):
        yield "the task has no labels, or one without a name"
    yield from _twice(task.labels, "label")
    width = output.dims[-1]
    rows = {str(s.dims[0]): len(contract.shared.get(s.name, ())) for s in contract.inputs if not s.batched}
    known = width if isinstance(width, int) else rows.get(width)
    if known != task.width:
        yield f"{task.output} has {known} scores, the task {task.width}"
    if task.thresholds and (len(task.thresholds) != len(task.labels) or not all(0 < t < 1 for t in task.thresholds)):
        yield f"{len(task.labels)} labels have thresholds {list(task.thresholds)}"
    if task.kind == "regression":
        yield from _regression_problems(task)


def _regression_problems(task: Task) -> Iterator[str]:
    low, high = task.limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        yield f"scores are within {list(task.limits)}"
        return
    if list(task.edges) != sorted(set(task.edges)) or not all(low <= e <= high for e in task.edges):
        yield f"classes end at {list(task.edges)}, scores are within {list(task.limits)}"
    classes = len(task.edges) + 1 if task.edges else round(high - low) + 1
    if classes != len(task.labels):
        yield f"there are {classes} derived classes and {len(task.labels)} labels"


def _variant_problems(variant: Variant, manifest: Manifest) -> Iterator[str]:
    if not PART.fullmatch(variant.format) or not PART.fullmatch(variant.precision) or variant.batch < 0:
        yield f"a variant is {variant.format!r} in {variant.precision!r} with batch {variant.batch}"
    yield from _length_problems(f"variant {variant.name}", variant.lengths, manifest.contract)
    if variant.model not in manifest.files or PurePosixPath(variant.model).parts[:1] != ("variants",):
        yield f"variant {variant.name} has a model {variant.model!r}, which is not a file of its own"
    for stage, model in zip(variant.stages, variant.models, strict=False):
        if model not in manifest.files:
            yield f"variant {variant.name} has no file for its stage {stage!r}"


def _twice(names: Iterable[str], what: str) -> Iterator[str]:
    most = Counter(names).most_common(1)
    if most and most[0][1] > 1:
        yield f"there are two of {what} {most[0][0]!r}"
