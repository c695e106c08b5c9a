"""A bundle that is open for answers in one process, and what says how; goes to other processes and machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mer_export.bundle import Bundle
from mer_export.contract import Table
from mer_export.data.bundle_data import refuse_other_extractors
from mer_export.data.feature_check import FeatureCheck
from mer_export.data.open import OpenData
from mer_export.errors import BundleError
from runtimes.backends.session import SessionOptions
from runtimes.features.completed import Completion
from runtimes.predict.opening import open_predictor
from runtimes.predict.output import check_beside
from runtimes.predict.predictor import Overflow, Prediction

PASSING = ("reports/", "samples/", "train/")
"""Folders of a bundle that say nothing of its answers."""


@dataclass(frozen=True)
class How:
    """How samples are answered; see `mer infer`. `checksum` is that of the bundle, empty for any."""

    bundle: Path
    runtime: str | None = None
    device: str = "cpu"
    threads: int | None = 1
    batch: int | None = None
    precision: str | None = None
    goal: str | None = None
    cuda_graph: bool = False
    overflow: Overflow = "error"
    beside: tuple[str, ...] = ()
    shared: Mapping[str, Table] | None = None
    trust: bool = False
    checksum: str = ""


def checksum(bundle: Bundle) -> str:
    """Of what a bundle answers with; reports that come and go do not change it."""
    manifest = bundle.manifest
    files = {n: e.sha256 for n, e in manifest.files.items() if not n.startswith(PASSING)}
    said = manifest.model_dump(mode="json", include={"config", "contract", "task", "variants", "features"})
    return hashlib.sha256(json.dumps([files, said], sort_keys=True).encode()).hexdigest()


class _Gathered(FeatureCheck):
    """Says nothing: what passed in one block is judged with all others."""

    def tell(self, strict: bool = False) -> None:
        """Nothing."""


class Desk:
    """A bundle with its predictor and encoders, which load when they are first needed. Belongs to one process.

    Raises:
        BundleError: the bundle here is another one than it should be.
        UsageError: as `runtimes.predict.opening.open_predictor`.
    """

    def __init__(self, how: How):
        check_beside(how.beside)
        self.how = how
        self.bundle = Bundle.open(how.bundle, how.trust)
        if how.checksum and checksum(self.bundle) != how.checksum:
            raise BundleError(f"{how.bundle} is another bundle here than where the run began: copy it to every machine")
        options = SessionOptions(how.device, how.threads, cuda_graph=how.cuda_graph)
        self.predictor = open_predictor(
            *(self.bundle, how.runtime, options, how.batch, how.precision, how.goal),
            overflow=how.overflow,
            shared=how.shared,
            gold="gold" in how.beside,
        )
        self.completion: Completion | None = None
        if self.bundle.manifest.encoders:
            self.completion = Completion.of(self.bundle, goal=how.goal, backend=how.runtime, options=options)
        # Other emotions than the data are labelled with are no reason to refuse the data.
        self.labels = None if how.shared and not self.predictor.gold else self.predictor.task.labels

    def predictions(self, data: OpenData, split: str | None = None) -> Iterator[Prediction]:
        """The answers for data, one for each unit, in order."""
        refuse_other_extractors(self.bundle, data.spec.extractors, str(data.path))
        self.predictor.features = _Gathered(self.bundle.manifest.features)
        return self.predictor.predict(data.stream(split, self.completion))

    @property
    def unreadable(self) -> int:
        """Utterances so far with a file that cannot be read."""
        return self.completion.unreadable if self.completion else 0
