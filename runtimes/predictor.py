"""From samples to labelled units on any backend: ordered, in bounded memory, each sample in the bucket that fits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Self

import numpy as np

from mer_export.bundle import Bundle, Variant
from mer_export.contract import Lengths, TensorSpec
from mer_export.data.collate import collate
from mer_export.data.overflow import Piece, fit
from mer_export.data.samples import Sample
from mer_export.errors import UnsupportedError, UsageError
from runtimes import BACKENDS, find_backend, open_session
from runtimes.session import Session, SessionOptions

CHUNK_SAMPLES = 512
CHUNK_BYTES = 64 << 20
"""How much is read before it is sorted by length and answered: the bound on memory."""

Overflow = Literal["error", "window", "truncate"]


@dataclass(frozen=True)
class Prediction:
    """The answer for one unit. `label` and `index` (of the class) are None where overflow left a unit without one.

    A regression has a `score` and no probabilities; its label is the derived class.
    """

    sample: str
    unit: str
    label: str | None
    index: int | None
    probabilities: dict[str, float]
    modalities: tuple[str, ...]
    score: float | None = None

    @property
    def numbers(self) -> tuple[float, ...]:
        """The score, or the probability of each class, as `Task.columns` names them; empty without a prediction."""
        return tuple(self.probabilities.values()) if self.score is None else (self.score,)


class _Work(NamedTuple):
    """One piece on its way through the model: of which sample of the chunk, how long, in which bucket."""

    sample: int
    piece: Piece
    lengths: Lengths
    bucket: Lengths | None


class Predictor:
    """Answers samples with a bundle on one backend. Used as a context manager, or closed by hand."""

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "onnxruntime",
        options: SessionOptions | None = None,
        batch: int = 1,
        overflow: Overflow = "error",
        precision: str = "fp32",
        variants: Sequence[Variant] | None = None,
    ):
        """Finds the variants to use; each is loaded when a sample first needs it.

        Args:
            bundle: opened bundle.
            backend: a name in `runtimes.BACKENDS`.
            options: device, threads, precision hint.
            batch: samples per run; a variant with a fixed batch keeps its own, its empty slots are filled.
            overflow: what happens to a sample longer than every bucket.
            precision: of the variants to use.
            variants: use these alone.

        Raises:
            UsageError: the bundle has no variant for this backend, or batch is below 1.
            UnsupportedError: the backend has no such precision.
        """
        if batch < 1:
            raise UsageError(f"--batch must be 1 or more, not {batch}")
        self.bundle = bundle
        self.contract = bundle.manifest.contract
        self.task = bundle.manifest.task
        self.backend = backend
        self.options = options or SessionOptions()
        self.batch = batch
        self.overflow = overflow
        self._variants = _by_bucket(bundle, backend, precision, variants)
        self._longest = self._find_longest()
        self._sessions: dict[str, Session] = {}

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        """One prediction per unit, in the order of `samples`.

        Raises:
            InputError: a sample that the model cannot take.
        """
        for sample, scores in self._answers(samples):
            yield from self._read(sample, scores)

    def scores(self, samples: Iterable[Sample]) -> list[np.ndarray]:
        """Raw rows of the task's output for each sample, float32 `(units, outputs)`.

        Rows that overflow left without a prediction are NaN.
        """
        return [scores for _, scores in self._answers(samples)]

    def session(self, lengths: Lengths | None = None) -> Session:
        """The loaded model for a bucket (None: the only one of a backend that takes any length)."""
        key = repr(lengths)
        if key not in self._sessions:
            variant = self._variants[key]
            self._sessions[key] = open_session(self.bundle, variant, self.backend, self.options)
        return self._sessions[key]

    @property
    def buckets(self) -> list[Lengths]:
        """Buckets there are variants for, shortest first; empty where the backend takes any length."""
        found = [v.lengths for v in self._variants.values() if v is not None]
        return sorted(found, key=lambda b: tuple(b.values()))

    def close(self) -> None:
        """Frees every loaded model."""
        for session in self._sessions.values():
            session.close()
        self._sessions = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _find_longest(self) -> Lengths:
        if not self.buckets:
            return self.contract.longest
        return {d: max(b[d] for b in self.buckets) for d in self.contract.sequence_dims}

    def _answers(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, np.ndarray]]:
        for chunk in _chunks(samples):
            yield from zip(chunk, self._run_chunk(chunk), strict=True)

    def _run_chunk(self, chunk: list[Sample]) -> list[np.ndarray]:
        """Rows per sample of one chunk: sorted by bucket and length, run in batches, put back in order."""
        work = []
        for number, sample in enumerate(chunk):
            for piece in fit(sample, self.contract, self._longest, self.overflow):
                lengths = piece.sample.lengths(self.contract)
                work.append(_Work(number, piece, lengths, self._bucket(lengths)))
        work.sort(key=lambda w: (tuple((w.bucket or {}).values()), tuple(w.lengths.values())))
        width = self._output.dims[-1]
        assert isinstance(width, int)
        rows = [np.full((len(s.units), width), np.nan, dtype=np.float32) for s in chunk]
        while work:
            size = self._batch_for(work[0].bucket)
            alike = [w for w in work[:size] if w.bucket == work[0].bucket]
            work = work[len(alike) :]
            for item, found in zip(alike, self._run_batch(alike), strict=True):
                kept = found[item.piece.keep]
                rows[item.sample][item.piece.start : item.piece.start + len(kept)] = kept
        return rows

    def _run_batch(self, alike: list[_Work]) -> list[np.ndarray]:
        session = self.session(alike[0].bucket)
        arrays = collate([w.piece.sample for w in alike], self.contract, alike[0].bucket, session.batch or None)
        output = session.run(arrays)[self.task.output]
        unit_dim = self._output.dims[1]
        if not isinstance(unit_dim, str):
            return [output[i : i + 1] for i in range(len(alike))]
        return [output[i, : w.lengths[unit_dim]] for i, w in enumerate(alike)]

    @property
    def _output(self) -> TensorSpec:
        return next(s for s in self.contract.outputs if s.name == self.task.output)

    def _bucket(self, lengths: Lengths) -> Lengths | None:
        """The smallest bucket that holds `lengths`; None (pad to the longest of the batch) without variants."""
        return self.contract.bucket_for(lengths, self.buckets) if self.buckets else None

    def _batch_for(self, bucket: Lengths | None) -> int:
        variant = self._variants[repr(bucket)]
        return (variant.batch if variant else 0) or self.batch

    def _read(self, sample: Sample, scores: np.ndarray) -> Iterator[Prediction]:
        modalities = sample.modalities(self.contract)
        answered = ~np.isnan(scores).any(axis=-1)
        indices = self.task.decide(np.where(answered[:, None], scores, 0))
        labels = self.task.labels
        for unit, has_answer, index, row in zip(sample.units, answered, indices, scores, strict=True):
            if not has_answer:
                yield Prediction(sample.id, unit, None, None, {}, modalities)
            elif self.task.kind == "regression":
                yield Prediction(sample.id, unit, labels[index], int(index), {}, modalities, float(row[0]))
            else:
                chances = self.task.probabilities(row)
                named = {label: float(p) for label, p in zip(labels, chances, strict=True)}
                yield Prediction(sample.id, unit, labels[index], int(index), named, modalities)


def _by_bucket(
    bundle: Bundle, backend: str, precision: str, variants: Sequence[Variant] | None
) -> dict[str, Variant | None]:
    """The variant to use for each bucket, by its `repr`; a dynamic batch is preferred, then the largest."""
    record = find_backend(backend)
    if precision not in (record.precisions if record.formats else ("fp32",)):
        offered = [name for name, b in BACKENDS.items() if b.formats and precision in b.precisions]
        raise UnsupportedError(f"runtime {backend} runs no {precision} variants, pass --runtime with one of {offered}")
    if not record.formats:
        return {repr(None): None}
    fitting = [v for v in bundle.manifest.variants if record.takes(v) and v.precision == precision]
    chosen = fitting if variants is None else list(variants)
    if not chosen:
        raise UsageError(
            f"{bundle.root} has no {precision} variant for runtime {backend}: "
            f"run mer export --format {record.formats[0]} --precision {precision}"
        )
    chosen.sort(key=lambda v: float("inf") if v.batch == 0 else v.batch)
    return {repr(v.lengths): v for v in chosen}


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Groups of samples of bounded number and size."""
    chunk: list[Sample] = []
    size = 0
    for sample in samples:
        chunk.append(sample)
        size += sum(a.nbytes for a in sample.inputs.values())
        if len(chunk) == CHUNK_SAMPLES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
