"""From samples to labelled units on any backend: ordered, in bounded memory, each sample in the bucket that fits it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from mer_export.bucket import Bucket, bucket_for
from mer_export.bundle import Bundle, Variant
from mer_export.contract import Lengths, Table, TensorSpec
from mer_export.data.collate import collate
from mer_export.data.feature_check import FeatureCheck
from mer_export.data.given import Given, checked
from mer_export.data.overflow import Piece, fit
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.task import with_shared
from runtimes.backends.session import Session, SessionOptions, check_process
from runtimes.backends.session_pool import Crew
from runtimes.backends.table import find_backend, open_session
from runtimes.predict.plan import Filling, planned_batches
from runtimes.predict.prediction import Prediction, predictions
from runtimes.predict.variants import by_bucket

if TYPE_CHECKING:
    from mer_export.data.open import Through
    from runtimes.predict.live import Answer, Live, Turn

BATCH = 16
"""Samples per run where neither the caller nor a plan says how many."""
CHUNK_SAMPLES = 512
CHUNK_BYTES = 64 << 20
"""How much is read before it is sorted by length and answered: the bound on memory."""

Overflow = Literal["error", "window", "truncate"]


class Part(NamedTuple):
    """A part of a sample that runs apart: the bucket that it goes to, and what it is."""

    bucket: Bucket | None
    piece: Piece


class _Work(NamedTuple):
    """One part on its way through the model: of which sample of the chunk."""

    sample: int
    part: Part


class Predictor:
    """Answers samples with a bundle on one backend. Used as a context manager, or closed by hand.

    Any number of threads may call it until it is closed; each gets the answers that it would get alone. A forked child
    is refused, as it has none of the engine's threads: open a predictor in each process of its own.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "onnxruntime",
        options: SessionOptions | None = None,
        batch: int | None = 1,
        overflow: Overflow = "error",
        precision: str = "fp32",
        variants: Sequence[Variant] | None = None,
        shared: Mapping[str, Table] | None = None,
        workers: int = 1,
        strict_features: bool = False,
        gold: bool = False,
        once: bool = False,
    ):
        """Finds the variants to use; each is loaded when a sample first needs it.

        Args:
            bundle: opened bundle.
            backend: a name in `known_backends()`.
            options: device, threads.
            batch: samples per run; a variant with a fixed batch keeps its own, its empty slots are filled. None takes
                what was planned for a bucket (`mer export --plan`), `BATCH` where nothing was.
            overflow: what happens to a sample longer than every bucket.
            precision: of the variants to use, or what the backend makes of fp32 ones (OpenVINO: bf16, int8;
                PyTorch on CUDA: tf32, bf16, fp16).
            variants: use these alone.
            shared: other values of inputs that all samples share, e.g. `{"emotions": {"bored": vector, ...}}`; where
                the outputs have one score per row, the rows are the labels of the answers.
            workers: sessions side by side, each with the threads of `options`.
            strict_features: features that are not like those of training are an error at the end of the samples, not a
                warning.
            gold: predictions also say what the samples' labels say, which then have to be labels of the task.
            once: all samples come in one call of `predict`, so that a network is opened for as many as come.

        Raises:
            UsageError: the bundle has no variant for this backend, no such input, or batch is below 1.
            UnsupportedError: the backend has no such precision.
            InputError: values that do not fit.
        """
        if batch is not None and batch < 1:
            raise UsageError(f"--batch must be 1 or more, not {batch}")
        self.bundle = bundle
        self.contract, self.task = bundle.manifest.contract, bundle.manifest.task
        for name, table in (shared or {}).items():
            self.contract, self.task = with_shared(self.contract, self.task, name, table)
        self.backend = backend
        self.precision = precision
        options = options or SessionOptions()
        reduced = find_backend(backend).reduced(precision, options.kind)
        self.options = replace(options, reduced=reduced)
        self.batch = batch or BATCH
        self._planned = {} if batch else planned_batches(bundle)
        self.overflow = overflow
        self._variants = by_bucket(bundle, backend, "fp32" if reduced else precision, options.kind, variants)
        self.buckets = sorted(b for b in self._variants if b is not None)
        """Buckets there are variants for, least first; empty where the backend takes any length."""
        self._longest = self._find_longest()
        self.workers = workers
        self.features = FeatureCheck(bundle.manifest.features)
        """How what it has answered compares with the features of training."""
        self.strict_features = strict_features
        self.filling = Filling()
        """How much of their buckets the items fill that it has answered."""
        self._lengths = [d for d in self.contract.sequence_dims if d not in self.contract.shared_lengths]
        self.gold, self.once = gold, once
        self._process = os.getpid()
        self._loading = Lock()
        self._used: set[Bucket | None] = set()
        self._sessions: dict[Bucket | None, Session] = {}
        self._crews: dict[Bucket | None, Crew] = {}

    def predict(self, samples: Iterable[Given]) -> Iterator[Prediction]:
        """One prediction per unit, in the order of `samples`.

        Args:
            samples: `Sample`s, or dicts of inputs as arrays or nested lists: `{"text": [[...]], "audio": [[...]]}`,
                with `id` (default: the number of the sample) and `units` (default: `<id>/<number>`, or the id where
                a sample is one unit) if they matter. Names, dtypes and dims are those of `contract.features`; a
                single vector stands for one step or one utterance.

        A unit of which the model can read nothing has no label.

        Raises:
            InputError: a sample that the model cannot take.
            UsageError: called in a forked child of the process that opened the predictor.
        """
        for chunk, rows in self._answered(samples):
            yield from self._predictions(chunk, [slice(0, len(r)) for r in rows], np.concatenate(rows))

    def dialogue(
        self, id: str, window: int | None = None, revise: int | None = None, through: Through | None = None
    ) -> Live:
        """A dialogue whose utterances come one at a time: `say` answers each with all that was said before.

        Args:
            id: its name.
            window: the last utterances alone are kept, and answered as if they were the dialogue.
            revise: of how many earlier utterances, whose context each new one changes, new answers are wanted; None is
                all.
            through: what each utterance passes once: the encoders of the bundle (`Completion.of(bundle).strict()`).
        """
        from runtimes.predict.live import Heard, Hearing, Live

        hearing = Hearing(self.bundle, self.task.labels, window, revise, through=through)
        return Live(hearing, self.answer, Heard(id))

    def answer(self, turn: Turn) -> Answer:
        """What comes of an utterance of a live dialogue.

        Raises:
            InputError: the model cannot take it.
        """
        return self.answer_together([turn])[0]

    def answer_together(self, turns: Sequence[Turn]) -> list[Answer]:
        """What comes of utterances of several live dialogues, which run in one batch.

        Raises:
            InputError: the model cannot take one of them; then none is answered.
        """
        samples = [list(checked(turn.samples, self.contract)) for turn in turns]
        rows = iter(self._run_chunk([s for own in samples for s in own]))
        # Only what is new: the others were looked at when they were said.
        self.features.add([s for turn in turns for s in checked(turn.spoken, self.contract)])
        self.features.tell(self.strict_features)
        answers = []
        for turn, own in zip(turns, samples, strict=True):
            scores = [next(rows) for _ in own]
            found = self._predictions(own, [slice(0, len(r)) for r in scores], np.concatenate(scores))
            answers.append(turn.answer(found))
        return answers

    def scores(self, samples: Iterable[Given]) -> list[np.ndarray]:
        """Raw rows of the task's output for each sample, float32 `(units, outputs)`.

        Rows of units without a prediction are NaN.
        """
        return [scores for _, scores in self.answers(samples)]

    @property
    def answered_by(self) -> list[str]:
        """The names of the variants that answered so far, least bucket first; `eager` are the bundle's own weights."""
        used = [self._variants[b] for b in (None, *self.buckets) if b in self._used]
        return ["eager" if v is None else v.name for v in used]

    def route(self, sample: Sample) -> Iterator[Part]:
        """The parts of a sample that run apart; of its units those that could be read.

        Nothing where the model can read nothing of it; raises InputError as `predict` does.
        """
        if sample.readable(self.contract):
            for piece in fit(sample.read, self.contract, self._longest, self.overflow):
                yield Part(bucket_for(piece.lengths, self.buckets), piece)

    def variant(self, bucket: Bucket | None) -> Variant | None:
        """What runs a bucket; None for the bundle's own weights."""
        return self._variants[bucket]

    def batch_for(self, bucket: Bucket | None) -> int:
        """How many items of a bucket run together at most."""
        variant = self._variants[bucket]
        if variant is not None and variant.batch:
            return variant.batch
        return self.batch if bucket is None else self._planned.get(bucket, self.batch)

    def session(self, bucket: Bucket | None = None, batch: int | None = None, items: int | None = None) -> Session:
        """The loaded model for a bucket (None: the only one of a backend that takes any length).

        One that is not loaded yet gets ready for `batch` items a call, without it for the usual number, and for so many
        `items` in all, without it for any number.
        """
        check_process(self._process)
        with self._loading:
            if bucket not in self._sessions:
                self._sessions[bucket] = self._open(bucket, batch or self.batch_for(bucket), items=items)
            return self._sessions[bucket]

    @contextmanager
    def lend(self, bucket: Bucket | None = None, batch: int | None = None) -> Iterator[Session]:
        """A loaded model that is nobody else's for as long as it is lent, unless its engine computes side by side.

        As many as there are `workers` are lent at a time, whoever comes then waits.
        """
        if self.workers == 1:
            yield self.session(bucket, batch)
        else:
            with self._crew(bucket, batch or self.batch_for(bucket)).lend() as session:
                yield session

    def pad(self, session: Session, parts: Sequence[Part]) -> dict[str, np.ndarray]:
        """The inputs of a session for parts of its bucket; raises InputError for values that the model cannot take."""
        samples, real = [p.piece.sample for p in parts], [p.piece.lengths for p in parts]
        return collate(samples, self.contract, session.bucket, session.batch or None, real)

    def cut(self, outputs: Mapping[str, np.ndarray], parts: Sequence[Part]) -> list[dict[str, np.ndarray]]:
        """What is real of these outputs of `pad`'s arrays: each of every part, without batch dim and padding."""
        specs = [s for s in self.contract.outputs if s.name in outputs]
        return [
            {s.name: outputs[s.name][i][_real(s, part.piece.lengths)] for s in specs} for i, part in enumerate(parts)
        ]

    def rows(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The scores among the outputs of one part, a row for each of its units, also of those that are not kept."""
        scores = outputs[self.task.output]
        # Past the labels there may be slots for more of them.
        return scores[None, : self.task.width] if self.contract.unit_dim is None else scores

    def unanswered(self, units: int) -> np.ndarray:
        """Rows of scores for units without an answer."""
        return np.full((units, self.task.width), np.nan, dtype=np.float32)

    def _crew(self, bucket: Bucket | None, batch: int, items: int | None = None) -> Crew:
        check_process(self._process)
        with self._loading:
            if bucket not in self._crews:
                self._crews[bucket] = Crew(partial(self._open, bucket, batch, items=items), self.workers)
            return self._crews[bucket]

    def _open(self, bucket: Bucket | None, batch: int, streams: int = 1, items: int | None = None) -> Session:
        options = replace(self.options, batch=batch, streams=streams, items=items)
        return open_session(self.bundle, self._variants[bucket], self.backend, options)

    def close(self) -> None:
        """Frees every loaded model."""
        for session in self._sessions.values():
            session.close()
        for crew in self._crews.values():
            crew.close()
        self._sessions, self._crews = {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _find_longest(self) -> Lengths:
        if not self.buckets:
            return self.contract.longest
        return {d: max(b[d] for b in self.buckets) for d in self.contract.sequence_dims}

    def answers(self, samples: Iterable[Given]) -> Iterator[tuple[Sample, np.ndarray]]:
        """Each sample as the model took it, and its rows as `scores` gives them."""
        for chunk, rows in self._answered(samples):
            yield from zip(chunk, rows, strict=True)

    def _answered(self, samples: Iterable[Given]) -> Iterator[tuple[list[Sample], list[np.ndarray]]]:
        """Samples and their rows, a chunk at a time."""
        for chunk, last in _chunks(checked(samples, self.contract)):
            rows = self._run_chunk(chunk, self.once and last)
            self.features.add([s.read for s in chunk])
            yield chunk, rows
        self.features.tell(self.strict_features)

    def _run_chunk(self, chunk: list[Sample], last: bool = False) -> list[np.ndarray]:
        """Rows per sample of one chunk: sorted by bucket and length, run in batches, put back in order.

        After the `last` one nothing runs any more.
        """
        work: dict[Bucket | None, list[_Work]] = {}
        for number, sample in enumerate(chunk):
            for part in self.route(sample):
                work.setdefault(part.bucket, []).append(_Work(number, part))
        rows = [self.unanswered(len(s.units) - len(s.unread)) for s in chunk]
        for bucket, items in work.items():
            self._used.add(bucket)
            if bucket is not None:
                self.filling.add([w.part.piece.lengths for w in items], bucket, self._lengths)
            items.sort(key=lambda w: tuple(w.part.piece.lengths.values()))
            size = self.batch_for(bucket)
            batches = [items[i : i + size] for i in range(0, len(items), size)]
            for alike, answers in zip(batches, self._run_batches(bucket, batches, last), strict=True):
                for item, found in zip(alike, answers, strict=True):
                    piece = item.part.piece
                    kept = found[piece.keep]
                    rows[item.sample][piece.start : piece.start + len(kept)] = kept
        return [self._placed(s, own) for s, own in zip(chunk, rows, strict=True)]

    def _placed(self, sample: Sample, rows: np.ndarray) -> np.ndarray:
        """The rows of units that could be read, among those of all."""
        if not sample.unread:
            return rows
        found = self.unanswered(len(sample.units))
        found[sample.places] = rows
        return found

    def _run_batches(self, bucket: Bucket | None, batches: list[list[_Work]], last: bool) -> Iterator[list[np.ndarray]]:
        """The answers of batches for one bucket, in order; side by side where there are several workers."""
        most, items = len(batches[0]), sum(map(len, batches)) if last else None
        if self.workers == 1:
            session = self.session(bucket, most, items)
            return (self._run_batch(session, alike) for alike in batches)
        return self._crew(bucket, most, items).map(self._run_batch, batches)

    def _run_batch(self, session: Session, alike: list[_Work]) -> list[np.ndarray]:
        parts = [w.part for w in alike]
        scores = session.run(self.pad(session, parts))[self.task.output]
        return [self.rows(found) for found in self.cut({self.task.output: scores}, parts)]

    def read(self, sample: Sample, scores: np.ndarray, first: int = 0) -> Iterator[Prediction]:
        """What `scores` say, one row for each of as many units of a sample, from unit number `first` on.

        A row of NaN is a unit without an answer.
        """
        return self._predictions([sample], [slice(first, first + len(scores))], scores)

    def _predictions(
        self, samples: Sequence[Sample], units: Sequence[slice], scores: np.ndarray
    ) -> Iterator[Prediction]:
        return predictions(self.task, self.contract, samples, units, scores, self.gold)


def load(path: Path | str, backend: str = "onnxruntime", trust: bool = False, **options: Any) -> Predictor:
    """Opens a bundle for prediction: `load("runs/a").predict(samples)`.

    Args:
        path: the bundle's directory.
        backend: a name in `known_backends()`.
        trust: run programs in it whoever wrote them.
        options: fields of `SessionOptions` (device, threads, cuda_graph, reuse) and of `Predictor` (batch,
            overflow, precision).
    """
    own = {k: options.pop(k) for k in ("device", "threads", "cuda_graph", "reuse") if k in options}
    return Predictor(Bundle.open(path, trust), backend, SessionOptions(**own), **options)


def _real(spec: TensorSpec, lengths: Mapping[str, int]) -> tuple[slice, ...]:
    """Where the values of one item stand that are no padding."""
    return tuple(slice(lengths[d] if isinstance(d, str) else d) for d in spec.dims[1:])


def _chunks(samples: Iterable[Sample]) -> Iterator[tuple[list[Sample], bool]]:
    """Groups of samples of bounded number and size, each with whether none follows, where that is known."""
    chunk: list[Sample] = []
    size = 0
    for sample in samples:
        chunk.append(sample)
        size += sum(a.nbytes for a in sample.inputs.values())
        if len(chunk) == CHUNK_SAMPLES or size >= CHUNK_BYTES:
            yield chunk, False
            chunk, size = [], 0
    if chunk:
        yield chunk, True
