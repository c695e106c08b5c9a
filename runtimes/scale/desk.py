"""A pipeline in a worker's process, which answers parts of the data that somebody else judges together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from mer_export.bundle import Bundle
from mer_export.data.bundle_data import refuse_other_extractors
from mer_export.data.feature_check import FeatureCheck
from mer_export.data.open import OpenData
from mer_export.errors import BundleError
from runtimes.pipeline import How, Pipeline
from runtimes.predict.prediction import Prediction

PASSING = ("reports/", "samples/", "train/")
"""Folders of a bundle that say nothing of its answers."""


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


class Desk(Pipeline):
    """A pipeline for data that come in parts. Belongs to one process."""

    def __init__(self, path: Path, how: How, expected: str = ""):
        """Opens a bundle here.

        Args:
            path: the bundle's directory.
            how: of the run.
            expected: the bundle's checksum where the run began; empty for any.

        Raises:
            BundleError: the bundle here is another one than it should be.
            UsageError: as `Pipeline`.
        """
        bundle = Bundle.open(path, how.trust)
        if expected and checksum(bundle) != expected:
            raise BundleError(f"{path} is another bundle here than where the run began: copy it to every machine")
        super().__init__(bundle, how)

    def predictions(self, data: OpenData, split: str | None = None) -> Iterator[Prediction]:
        """The answers for data, one for each unit, in order."""
        refuse_other_extractors(self.bundle, data.spec.extractors, str(data.path))
        self.predictor.features = _Gathered(self.bundle.manifest.features)
        return self.predictor.predict(data.stream(split, self.completion))
