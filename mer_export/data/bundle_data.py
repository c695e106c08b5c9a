"""Data sets as a bundle reads them: by the data section of its configuration, where that fits the files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from mer_export.bundle import CONFIG, Bundle
from mer_export.data.dialogues import Dialogue, Utterance
from mer_export.data.draft import drafted
from mer_export.data.feature_check import extractor_problem
from mer_export.data.formats.format import known_formats
from mer_export.data.open import Through, detect, open_corpus, said_extractors, stream_samples
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec, Extractor
from mer_export.encoders.context import with_kept
from mer_export.errors import InputError, UsageError
from mer_export.overrides import apply_overrides
from mer_export.registry import first_problem
from mer_export.untrusted.places import Allowed, Reach
from mer_export.untrusted.yaml_files import read_yaml

log = logging.getLogger("mer")

AUTO, TEXT = "auto", "text"
KEPT = ("unit", "context", "tokenizer", "packing", "faces")
"""Parts of a data section that hold in any format."""


def choose_spec(
    path: Path,
    data_format: str,
    configured: DataSpec,
    sets: Sequence[str] = (),
    outside: Iterable[Path] | None = None,
    own: Path | None = None,
) -> DataSpec:
    """How to read `path`: as `configured` where that describes its format, else by the files; `sets` lie over either.

    Args:
        path: file or directory.
        data_format: name of its format, or auto.
        configured: the data section of a bundle or preset.
        sets: overrides such as `data.emotions.zsl=null`.
        outside: folders that paths in files may lead to.
        own: the bundle that `configured` comes with.

    Raises:
        InputError: a file names a folder elsewhere.
        UsageError: an override that is not of the data section, that the format does not read, or that contradicts
            `data_format`; or data in another format than that.
    """
    configured = configured.allowing(Allowed.by(outside, apply_overrides({}, sets)))
    said = [*sets] if data_format == AUTO else [f"data.format={data_format}", *sets]
    spec = overridden(configured, said)
    if data_format not in (AUTO, spec.format):
        raise UsageError(f"--data-format {data_format} and data.format={spec.format} contradict: leave one of them out")
    if not _describes(configured if data_format != AUTO else spec, path, spec.format):
        spec = overridden(_kept(configured), said)
    if data_format != AUTO and (found := detect(path, spec)) != data_format:
        raise UsageError(f"{path} is in the format {found}: leave --data-format {data_format} out")
    if sets:
        refuse_unread(path, spec, sets)
    reach = Reach(path if path.is_dir() else path.parent, spec.allowed, *([own] if own else []))
    for name, folder in spec.folders.items():
        reach.path(folder, f"data.{name}", Path())
    return spec


def _kept(configured: DataSpec) -> DataSpec:
    """Data in another format still take the same shape, with the same tokenizer and packing."""
    kept = {n: getattr(configured, n) for n in KEPT if n in configured.model_fields_set}
    return DataSpec(**kept).beside(configured)


def _describes(section: DataSpec, path: Path, wanted: str) -> bool:
    """Whether a section is of the format that data are to be read in; auto fits any."""
    if section.format != wanted:
        return section.format == AUTO
    # A name that is not a format is refused where the data are opened.
    known = known_formats().get(section.format)
    return known is None or bool(known.load().detect(path, section))


def refuse_unread(path: Path, spec: DataSpec, sets: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raises UsageError for an override of the data section that nothing reads; `others` are read elsewhere."""
    if sets:
        _refuse_unread(detect(path, spec), spec, sets, others)


def _refuse_unread(name: str, spec: DataSpec, sets: Sequence[str], others: Sequence[str] = ()) -> None:
    reads = known_formats()[name].reads
    for said in sets:
        place = said.partition("=")[0].strip()
        if place in others:
            continue
        field = place.split(".")[1]
        if field not in ("format", "extractors", *reads) or (field in spec.sources and "table" not in reads):
            raise UsageError(f"--set {said}: the format {name} does not read it, leave it out; it reads {list(reads)}")


def bundle_spec(
    bundle: Bundle,
    path: Path,
    data_format: str = AUTO,
    sets: Sequence[str] = (),
    outside: Iterable[Path] | None = None,
) -> DataSpec:
    """How a bundle reads `path`; raises InputError where other extractors made its features."""
    configured = _configured(bundle)
    if bundle.manifest.encoders and data_format == AUTO and not sets and _undescribed(path):
        configured = _by_names(path, configured)
    chosen = choose_spec(path, data_format, configured, sets, outside, bundle.root)
    if any(s.extractor != s.UNKNOWN for s in bundle.manifest.features.values()):
        refuse_other_extractors(bundle, said_extractors(path, chosen), str(path))
    return chosen


def _undescribed(path: Path) -> bool:
    from mer_export.data.inspect import undescribed

    return bool(undescribed(path, DataSpec()))


def line_spec(bundle: Bundle) -> DataSpec:
    """How a bundle reads dialogues that come as JSON and from no file."""
    return stored_spec(bundle, "jsonl")


def stored_spec(
    bundle: Bundle, format: str, sets: Sequence[str] = (), outside: Iterable[Path] | None = None
) -> DataSpec:
    """How a bundle reads data of a format that lie in no folder; raises UsageError as `choose_spec`."""
    configured = _configured(bundle).allowing(Allowed.by(outside, apply_overrides({}, sets)))
    _refuse_unread(format, configured, sets)
    return overridden(configured if configured.format in (AUTO, format) else _kept(configured), sets)


def _configured(bundle: Bundle) -> DataSpec:
    """The data section of a bundle, with what it keeps itself."""
    configured = read_yaml(bundle.path(CONFIG)) if CONFIG in bundle.manifest.files else {}
    # What made the training features says nothing of others.
    section = {n: v for n, v in (configured.get("data") or {}).items() if n != "extractors"}
    return with_kept(DataSpec.model_validate(section), bundle).for_model(bundle.manifest.contract)


def refuse_other_extractors(bundle: Bundle, said: Mapping[str, Extractor], where: str) -> None:
    """Raises InputError where features were made by others than those that the model was trained on."""
    if problem := extractor_problem(bundle.manifest.features, said):
        raise InputError(f"{where}: {problem}")


def _by_names(path: Path, spec: DataSpec) -> DataSpec:
    """A section for a table that nothing describes: what a bundle with encoders needs of it, names tell."""
    found, lines = drafted(path, DataSpec())
    log.warning("%s has no table.yaml, it is read by the names of its columns: %s", path, ", ".join(lines))
    kept = {n: getattr(spec, n) for n in spec.model_fields_set if n != "format"}
    return DataSpec.model_validate(found.model_dump(exclude_unset=True) | kept).beside(spec)


def bundle_corpus(
    bundle: Bundle,
    path: Path,
    data_format: str = AUTO,
    sets: Sequence[str] = (),
    labels: Sequence[str] | None = None,
    outside: Iterable[Path] | None = None,
    through: Through | None = None,
) -> Corpus:
    """A data set as the bundle reads it, with the labels of its task or others; `through` its encoders."""
    spec = bundle_spec(bundle, path, data_format, sets, outside)
    return open_corpus(path, spec, labels or bundle.manifest.task.labels, through)


def bundle_samples(
    bundle: Bundle,
    path: Path,
    data_format: str,
    split: str,
    outside: Iterable[Path] | None = None,
    through: Through | None = None,
    sets: Sequence[str] = (),
    labels: Sequence[str] | None = None,
) -> list[Sample]:
    """One split of a data set as the bundle reads it, `through` its encoders."""
    if through is None:
        return bundle_corpus(bundle, path, data_format, sets, labels, outside).split(split)
    # Nothing of other splits is encoded.
    spec = bundle_spec(bundle, path, data_format, sets, outside)
    return list(stream_samples(path, spec, labels or bundle.manifest.task.labels, split, through))


def features_alone(bundle: Bundle, path: Path) -> Through:
    """What dialogues pass where no encoder runs: UsageError for recordings or sentences that have no features yet."""

    def passed(dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
        raw: dict[str, str] = {}
        made: set[str] = set()
        for dialogue in dialogues:
            for utterance in dialogue.utterances:
                made |= utterance.features.keys()
                held = {n for n in bundle.manifest.encoders if _raw(utterance, n)}
                unit = utterance.id if utterance.id == dialogue.id else f"{dialogue.id}/{utterance.id}"
                raw |= {n: unit for n in held - utterance.features.keys() - raw.keys()}
            yield dialogue
        # An encoder leaves out what it cannot read, so features of some utterances are those of all.
        for name in raw.keys() - made:
            asked = [f"--encoder {n}={bundle.root}/{p}" for n in raw.keys() - made for p in bundle.manifest.encoders[n]]
            raise UsageError(
                f"{path} has no {name} features of {raw[name]}, and no encoder runs here: "
                f"`mer features {path} {' '.join(asked)} --out FILE` makes them, pass that file"
            )

    return passed


def _raw(utterance: Utterance, name: str) -> bool:
    """Whether an utterance has what the encoder of an input reads."""
    return bool((utterance.sentence or "").strip()) if name == TEXT else utterance.recording is not None


def overridden(spec: DataSpec, sets: Sequence[str]) -> DataSpec:
    """A data section with overrides over it; raises UsageError for one that is not of the section, or does not fit."""
    values = apply_overrides({"data": spec.model_dump(mode="json")}, sets)
    if set(values) != {"data"}:
        raise UsageError(f"--set changes the data section here, write it as data.field=value: {list(sets)}")
    try:
        return DataSpec.model_validate(values["data"]).beside(spec)
    except ValidationError as error:
        raise UsageError(f"data: {first_problem(error)}") from None
