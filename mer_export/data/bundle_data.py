"""Data sets as a bundle reads them: by the data section of its configuration, where that fits the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from mer_export.bundle import CONFIG, Bundle
from mer_export.data.formats.format import known_formats
from mer_export.data.open import open_corpus
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.tokenizer import with_kept
from mer_export.errors import UsageError
from mer_export.overrides import apply_overrides
from mer_export.registry import first_problem
from mer_export.untrusted.yaml_files import read_yaml

AUTO = "auto"
KEPT = ("unit", "context", "tokenizer", "packing", "faces")
"""Parts of a data section that hold in any format."""


def choose_spec(path: Path, data_format: str, configured: DataSpec, sets: Sequence[str] = ()) -> DataSpec:
    """How to read `path`: in `data_format` unless that is auto, else as `configured` where it fits, else by the files.

    `sets` are overrides of `configured` such as `data.emotions.zsl=null`.
    """
    spec = _override(configured, sets) if sets and data_format == AUTO else configured
    # Data in another format still take the same shape, with the same tokenizer and packing.
    kept = {n: getattr(spec, n) for n in KEPT}
    if data_format != AUTO:
        return DataSpec(format=data_format, **kept)
    # A name that is not a format is refused where the data are opened.
    fits = spec.format not in known_formats() or known_formats()[spec.format].load().detect(path, spec)
    return spec if fits else DataSpec(**kept)


def bundle_spec(bundle: Bundle, path: Path, data_format: str = AUTO, sets: Sequence[str] = ()) -> DataSpec:
    """How a bundle reads `path`."""
    configured = read_yaml(bundle.path(CONFIG)) if CONFIG in bundle.manifest.files else {}
    spec = with_kept(DataSpec.model_validate(configured.get("data") or {}), bundle)
    return choose_spec(path, data_format, spec.for_model(bundle.manifest.contract), sets)


def bundle_corpus(
    bundle: Bundle,
    path: Path,
    data_format: str = AUTO,
    sets: Sequence[str] = (),
    labels: Sequence[str] | None = None,
) -> Corpus:
    """A data set as the bundle reads it, with the labels of its task or others."""
    return open_corpus(path, bundle_spec(bundle, path, data_format, sets), labels or bundle.manifest.task.labels)


def bundle_samples(bundle: Bundle, path: Path, data_format: str, split: str) -> list[Sample]:
    """One split of a data set as the bundle reads it."""
    return bundle_corpus(bundle, path, data_format).split(split)


def _override(spec: DataSpec, sets: Sequence[str]) -> DataSpec:
    values = apply_overrides({"data": spec.model_dump(mode="json")}, sets)
    if set(values) != {"data"}:
        raise UsageError(f"--set changes the data section here, write it as data.field=value: {list(sets)}")
    try:
        return DataSpec.model_validate(values["data"])
    except ValidationError as error:
        raise UsageError(f"data: {first_problem(error)}") from None
