"""`mer infer … --shards N` and `--cluster ADDRESS`: data sets in blocks that workers share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mer_export import machine
from mer_export.bundle import Bundle
from mer_export.data.bundle_data import AUTO, bundle_spec, stored_spec
from mer_export.data.feature_check import FeatureCheck
from mer_export.data.parts import Part, cut, format_of
from mer_export.data.spec import DataSpec
from mer_export.errors import UsageError
from mer_export.progress import SILENT, Progress
from mer_export.untrusted.parquet import pyarrow_modules
from mer_export.untrusted.stored import Stored, stored_files
from runtimes.pipeline import How, Reading
from runtimes.scale.blocks import Asked
from runtimes.scale.cluster import ClusterCrew, ray_module
from runtimes.scale.desk import checksum
from runtimes.scale.ledger import Ledger, Request
from runtimes.scale.processes import ProcessCrew
from runtimes.scale.run import Hire, answer_all, check_folder

MIB = 1 << 20
SAME = ("threads", "batch", "workers", "most_workers", "trust", "shared", "beside", "strict_features")
"""What of `How` changes no answer, or is said otherwise."""


@dataclass(frozen=True)
class Spread:
    """Over what a run is spread: so many workers, processes here or actors of a cluster, and MiB of a block."""

    shards: int | None = None
    cluster: str | None = None
    block: float = 16.0


@dataclass(frozen=True)
class Blocks:
    """Files that are answered in blocks, into a directory that goes on where it ended."""

    bundle: Path
    how: How
    reading: Reading
    out: Path
    spread: Spread
    force: bool = False
    progress: Progress = SILENT
    prints: ClassVar[bool] = False

    def check(self) -> None:
        """Looks at what needs no bundle.

        Raises:
            UsageError: `out` is no directory, or a device that a cluster does not give.
            NotAvailableError: a package is missing.
        """
        check_folder(self.out)
        pyarrow_modules()
        if self.spread.cluster:
            ray_module()
            if self.how.device not in ("cpu", "cuda"):
                device = self.how.device
                raise UsageError(f"--device {device}: a cluster gives each worker a GPU of its own, pass --device cuda")

    def plan(self) -> dict[str, Any]:
        """Which blocks there are, and what decides the answers.

        Raises:
            UsageError: inputs cannot be cut.
        """
        _, _, request = self._opened()
        said, parts = request.said(), list(self._parts(request))
        found = {"out": str(self.out), "blocks": len(parts), "bytes": sum(p.nbytes for p in parts)}
        return found | {n: said[n] for n in ("inputs", "options")}

    def answer(self) -> dict[str, Any]:
        """Does what is missing and says what came of all of it.

        Raises:
            UsageError: inputs cannot be cut, or `out` holds something else.
            NotAvailableError: the cluster is missing.
            MerError: blocks failed; see `runtimes.scale.run.answer_all`.
        """
        bundle, specs, request = self._opened()
        hire = self._hire(bundle)
        asked = Asked(self.bundle.absolute(), self._of_a_worker(), specs, self.reading.split, request.bundle)
        with Ledger.open(self.out, request, partial(self._parts, request), self.force) as ledger:
            check = FeatureCheck(bundle.manifest.features)
            found = answer_all(ledger, asked, hire, check, self.how.strict_features, self.progress)
        return {"out": str(self.out), **found}

    def _opened(self) -> tuple[Bundle, dict[str, DataSpec], Request]:
        """The bundle, how each format among the files is read, and what decides the answers."""
        bundle = Bundle.open(self.bundle, self.how.trust)
        files = [f for name in self.reading.inputs for f in _listed(name)]
        specs = _specs(bundle, files, self.reading)
        outside = sorted(str(folder.absolute()) for folder in self.reading.outside or ())
        return bundle, specs, Request(files, checksum(bundle), self._options(specs), outside)

    def _parts(self, request: Request) -> Iterator[Part]:
        return planned(request.inputs, max(1, int(self.spread.block * MIB)))

    def _options(self, specs: Mapping[str, DataSpec]) -> dict[str, Any]:
        """What decides the answers beside inputs and bundle, by the names of the options."""
        how = self.how
        said = {n.replace("_", "-"): v for n, v in asdict(how).items() if n not in SAME}
        shared = json.dumps(how.shared, sort_keys=True).encode() if how.shared else b""
        said |= {"with": list(how.beside), "emotions": hashlib.sha256(shared).hexdigest() if shared else None}
        said |= {"split": self.reading.split, "block": self.spread.block}
        return said | {"set": {n: s.model_dump(mode="json") for n, s in specs.items()}}

    def _hire(self, bundle: Bundle) -> Hire:
        count, cluster = self.spread.shards, self.spread.cluster
        if cluster is None:
            return partial(ProcessCrew.hired, count=count or 1)
        cores, gpus = room_of(bundle, self.how)
        return partial(ClusterCrew.hired, address=cluster, count=count, cores=cores, gpus=gpus)

    def _of_a_worker(self) -> How:
        """As one of several that share the cores, unless a goal says otherwise: of one session, with its part of the
        threads where the command line does not say how many."""
        if self.how.goal is not None:
            return self.how
        cores = machine.cores() if self.spread.cluster is None else 1
        threads = self.how.threads or max(1, cores // (self.spread.shards or 1))
        return replace(self.how, threads=threads, most_workers=1)


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
            found[name] = bundle_spec(bundle, file.local, reading.data_format, reading.sets, reading.outside)
        elif name not in found:
            found[name] = stored_spec(bundle, name, reading.sets, reading.outside)
    return found


def planned(files: Iterable[Stored], most: int) -> Iterator[Part]:
    """The parts of files, about `most` bytes each, in order."""
    for file in files:
        yield from cut(file, most)


def room_of(bundle: Bundle, how: How) -> tuple[int, int]:
    """Cores and GPUs of a worker: as the machine profile says for a goal, else its threads and its device."""
    if how.goal is None:
        return how.threads or 1, int(how.device == "cuda")
    predictor = how.predictor(bundle)
    return predictor.workers * (predictor.options.threads or 1), int(predictor.options.on_gpu)
