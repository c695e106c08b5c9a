"""Where a trained bundle comes from: versions, code revision, data fingerprint, feature statistics."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mer_export import __version__
from mer_export.bundle import FeatureStatistics
from mer_export.contract import Contract
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import Extractor

PACKAGES = ("torch", "numpy", "accelerate", "safetensors")


def provenance(corpus: Corpus, licence: str) -> dict[str, Any]:
    """What made the bundle and from what; JSON-able."""
    warnings = {"warnings": corpus.info["warnings"]} if corpus.info.get("warnings") else {}
    return {
        "source": "trained",
        "licence": licence,
        # Of this code itself: the package that is called `mer` is somebody else's.
        "versions": {"python": platform.python_version(), "mer": __version__} | {p: _version(p) for p in PACKAGES},
        "git": git_revision(),
        "data": {
            "format": corpus.format,
            "fingerprint": fingerprint(corpus),
            "splits": {
                name: {"items": len(samples), "units": sum(len(s.units) for s in samples)}
                for name, samples in corpus.splits.items()
            },
            **warnings,
        },
    }


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout this code runs from, with `+` where files were changed; None outside of one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def fingerprint(corpus: Corpus) -> str:
    """SHA-256 over every id, input and label, in order: equal data give equal fingerprints in any format."""
    digest = hashlib.sha256()
    for split, samples in corpus.splits.items():
        for sample in samples:
            digest.update(f"{split}\0{sample.id}\0{len(sample.units)}\0".encode())
            for name in sorted(sample.inputs):
                _digest(digest, name, sample.inputs[name])
            if sample.labels is not None:
                _digest(digest, "labels", sample.labels)
    return digest.hexdigest()


def feature_statistics(
    samples: Sequence[Sample], contract: Contract, extractors: Mapping[str, Extractor]
) -> dict[str, FeatureStatistics]:
    """Overall mean, spread and range of each float input over the samples that have it, and what made it."""
    found = {}
    for spec in contract.features:
        width = spec.dims[-1]
        # Images are decoded when they are read; all of them at once need not fit in memory.
        given = (s.inputs[spec.name] for s in samples if spec.name in s.inputs)
        arrays = [a.ravel() for a in given if isinstance(a, np.ndarray)]
        if spec.dtype != "float32" or not isinstance(width, int) or not arrays:
            continue
        values = np.concatenate(arrays)
        found[spec.name] = FeatureStatistics(
            width=width,
            mean=float(values.mean(dtype=np.float64)),
            std=float(values.std(dtype=np.float64)),
            minimum=float(values.min()),
            maximum=float(values.max()),
            **({"extractor": made.name, "sha256": made.sha256} if (made := extractors.get(spec.name)) else {}),
        )
    return found


def width_statistics(samples: Iterable[Sample], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation of each feature of one input (float32); None where no sample has it.

    A feature that never changes gets deviation 1, so that it is only centred.
    """
    arrays = [s.inputs[name].reshape(-1, s.inputs[name].shape[-1]) for s in samples if name in s.inputs]
    if not arrays:
        return None
    values = np.concatenate(arrays).astype(np.float64)
    std = values.std(axis=0)
    return values.mean(axis=0).astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32)


def _digest(digest: Any, name: str, array: np.ndarray) -> None:
    array = np.ascontiguousarray(getattr(array, "fingerprint", array))
    digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
    digest.update(array.data if array.size else b"")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
