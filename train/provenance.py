"""Where a trained bundle comes from: versions, code revision, data fingerprint, feature statistics."""

from __future__ import annotations

import hashlib
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mer_export import __version__
from mer_export.bundle import MANIFEST, Bundle, FeatureStatistics
from mer_export.contract import Contract
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import Extractor
from mer_export.errors import InputError
from train.config import TrainConfig
from train.encoders import Settings

COLUMNS = 16
"""Columns whose statistics are taken together."""
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


def starts(config: TrainConfig, settings: Settings, data: Path) -> dict[str, str]:
    """SHA-256 of the weights of every bundle that a run starts from, by the setting that names it."""
    reach = config.data.reach(data)
    named = {f"protocol.{n}": Path(f) for n, f in settings.files.items()}
    named |= {f"protocol.{n}": reach.path(f, f"protocol.{n}") for n, f in settings.data_files.items()}
    named = {n: f for n, f in named.items() if (f / MANIFEST).is_file()}
    named |= {"init": Path(config.init)} if config.init else {}
    return {n: Bundle.open(f).manifest.weights.sha256 for n, f in named.items()}


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout this code runs from, with `+` where files were changed; None outside of one."""
    # Installed packages may lie in somebody else's checkout, which does not know them.
    if not _git(folder, "ls-files"):
        return None
    return _git(folder, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    """What git says in a folder; None where it says nothing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False
        )
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
        arrays = [a for a in given if isinstance(a, np.ndarray) and a.size]
        if spec.dtype != "float32" or not isinstance(width, int) or not arrays:
            continue
        count = sum(a.size for a in arrays)
        mean = sum(float(a.sum(dtype=np.float64)) for a in arrays) / count
        squares = sum(float(np.square(np.subtract(a, mean, dtype=np.float64)).sum()) for a in arrays)
        found[spec.name] = FeatureStatistics(
            width=width,
            mean=mean,
            std=math.sqrt(squares / count),
            minimum=float(min(a.min() for a in arrays)),
            maximum=float(max(a.max() for a in arrays)),
            **({"extractor": made.name, "sha256": made.sha256} if (made := extractors.get(spec.name)) else {}),
        )
    return found


def width_statistics(samples: Iterable[Sample], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation of each feature of one input (float32); None where no sample has it.

    A feature that never changes gets deviation 1, so that it is only centred.

    Raises:
        InputError: the input has two widths.
    """
    given = [(s.id, s.inputs[name]) for s in samples if name in s.inputs]
    if not given:
        return None
    width = given[0][1].shape[-1]
    if other := next(((i, a.shape[-1]) for i, a in given if a.shape[-1] != width), None):
        raise InputError(f"{name} is {width} wide in {given[0][0]} and {other[1]} in {other[0]}: give it one width")
    arrays = [a.reshape(-1, width) for _, a in given]
    mean, std = np.empty(width), np.empty(width)
    # Some columns at a time: in float64 all of them are several times as large as the data.
    for columns in np.array_split(np.arange(width), max(1, width // COLUMNS)):
        own = slice(columns[0], columns[-1] + 1)
        values = np.concatenate([a[:, own] for a in arrays]).astype(np.float64)
        mean[own], std[own] = values.mean(axis=0), values.std(axis=0)
    return mean.astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32)


def _digest(digest: Any, name: str, array: np.ndarray) -> None:
    array = np.ascontiguousarray(getattr(array, "fingerprint", array))
    digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
    digest.update(array.data if array.size else b"")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
