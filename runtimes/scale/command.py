"""`mer infer … --shards N` and `--cluster ADDRESS`: from a command line to a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mer_export.bundle import Bundle
from mer_export.data.bundle_data import AUTO, bundle_spec, stored_spec
from mer_export.data.feature_check import FeatureCheck
from mer_export.data.parts import Part, cut, format_of
from mer_export.data.spec import DataSpec
from mer_export.errors import UsageError
from mer_export.progress import SILENT, Progress
from mer_export.untrusted.parquet import pyarrow_modules
from mer_export.untrusted.stored import Stored, stored_files
from runtimes.scale.blocks import Asked
from runtimes.scale.cluster import ClusterCrew, ray_module
from runtimes.scale.desk import Desk, How, checksum
from runtimes.scale.ledger import Ledger, Request
from runtimes.scale.processes import ProcessCrew
from runtimes.scale.run import Hire, answer_all, check_folder

MIB = 1 << 20
SAME = ("threads", "batch", "bundle", "checksum", "trust", "shared", "beside")
"""What of `How` changes no answer, or is said otherwise."""


@dataclass(frozen=True)
class Reading:
    """Which data and how they are read; as of `mer infer`."""

    inputs: Sequence[str]
    data_format: str = AUTO
    sets: Sequence[str] = ()
    outside: Sequence[Path] | None = None
    split: str | None = None


@dataclass(frozen=True)
class Spread:
    """Over what a run is spread: so many workers, processes here or actors of a cluster, and MiB of a block."""

    shards: int | None = None
    cluster: str | None = None
    block: float = 16.0


def infer_in_blocks(
    how: How,
    reading: Reading,
    out: Path,
    spread: Spread,
    strict: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Answers files in blocks, or with `dry_run` says what would be done.

    Raises:
        UsageError: `out` is no directory or holds something else, or inputs cannot be cut.
        NotAvailableError: a package is missing, or the cluster.
        MerError: blocks failed; see `runtimes.scale.run.answer_all`.
    """
    check_folder(out)
    pyarrow_modules()
    if spread.cluster:
        ray_module()
        if how.device not in ("cpu", "cuda"):
            raise UsageError(f"--device {how.device}: a cluster gives each worker a GPU of its own, pass --device cuda")
    bundle = Bundle.open(how.bundle, how.trust)
    how = replace(how, bundle=how.bundle.absolute(), checksum=checksum(bundle))
    files = [f for name in reading.inputs for f in _listed(name)]
    specs = _specs(bundle, files, reading)
    request = Request(files, how.checksum, _options(how, reading, specs, spread))
    plan = partial(planned, files, max(1, int(spread.block * MIB)))
    if dry_run:
        return _preview(request, plan(), out)
    hire = _hire(how, spread)
    with Ledger.open(out, request, plan, force) as ledger:
        asked = Asked(_with_threads(how, spread), specs, reading.split)
        return answer_all(ledger, asked, hire, FeatureCheck(bundle.manifest.features), strict, progress)


def _listed(name: str) -> list[Stored]:
    found = stored_files(name)
    if not found:
        raise UsageError(f"{name} holds no files: name a directory of .parquet or .jsonl files")
    return found


def _specs(bundle: Bundle, files: Iterable[Stored], reading: Reading) -> dict[str, DataSpec]:
    """How each format among the files is read."""
    found: dict[str, DataSpec] = {}
    for file in files:
        name = format_of(file)
        if reading.data_format not in (AUTO, name):
            raise UsageError(f"{file.said} is in the format {name}: leave --data-format {reading.data_format} out")
        if name not in found and file.local:
            found[name] = bundle_spec(bundle, file.local, reading.data_format, reading.sets or (), reading.outside)
        elif name not in found:
            found[name] = stored_spec(bundle, name, reading.sets or (), reading.outside)
    return found


def _options(how: How, reading: Reading, specs: Mapping[str, DataSpec], spread: Spread) -> dict[str, Any]:
    """What decides the answers beside inputs and bundle, by the names of the options."""
    said = {n.replace("_", "-"): v for n, v in asdict(how).items() if n not in SAME}
    shared = json.dumps(how.shared, sort_keys=True).encode() if how.shared else b""
    said |= {"with": list(how.beside), "emotions": hashlib.sha256(shared).hexdigest() if shared else None}
    said |= {"split": reading.split, "block": spread.block}
    return said | {"set": {n: s.model_dump(mode="json") for n, s in specs.items()}}


def planned(files: Iterable[Stored], most: int) -> Iterator[Part]:
    for file in files:
        yield from cut(file, most)


def _preview(request: Request, parts: Iterable[Part], out: Path) -> dict[str, Any]:
    found = list(parts)
    said = request.said()
    nbytes = sum(p.nbytes for p in found)
    return {"out": str(out), "blocks": len(found), "bytes": nbytes, **{n: said[n] for n in ("inputs", "options")}}


def _hire(how: How, spread: Spread) -> Hire:
    if spread.cluster is None:
        return partial(ProcessCrew.hired, count=spread.shards or 1)
    cores, gpus = room_of(how)
    return partial(ClusterCrew.hired, address=spread.cluster, count=spread.shards, cores=cores, gpus=gpus)


def room_of(how: How) -> tuple[int, int]:
    """Cores and GPUs of a worker: as the machine profile says for a goal, else its threads and its device."""
    if how.goal is None:
        return how.threads or 1, int(how.device == "cuda")
    predictor = Desk(how).predictor
    return predictor.workers * (predictor.options.threads or 1), int(predictor.options.on_gpu)


def _with_threads(how: How, spread: Spread) -> How:
    """With the threads of one worker where neither the command line nor a goal says them: workers share the cores."""
    if how.threads is not None or how.goal is not None:
        return how
    cores = len(os.sched_getaffinity(0)) if spread.cluster is None else 1
    return replace(how, threads=max(1, cores // (spread.shards or 1)))
