"""The bundles that are served: opened, warmed up, and opened again when they change on disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from mer_export.bucket import Bucket
from mer_export.bundle import MANIFEST, Bundle
from mer_export.data.samples import Sample
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.file_state import State, state_of
from runtimes.encode import SignalEncoding
from runtimes.features.completed import Completion
from runtimes.pipeline import How
from runtimes.predict.opening import share_out
from runtimes.predict.prediction import Prediction
from runtimes.predict.predictor import Part, Predictor
from runtimes.serve.batching import Batcher, Deadline, Outputs, in_time
from runtimes.serve.encoding import Encoders
from runtimes.serve.metrics import Metrics
from runtimes.serve.reading import Reader
from runtimes.serve.recordings import taken, unreadable
from runtimes.serve.refusals import Refusal

log = logging.getLogger("mer")
QUEUE = 1024
"""Items that may wait for a model."""
LOOK = 1.0
"""Seconds between two looks at whether a bundle was changed."""
Asked = tuple[Part, asyncio.Future[Outputs]]


def opened_predictor(root: Path, how: How) -> Predictor:
    """A predictor whose models are loaded and have run.

    Without a goal there is one session for each core, of one thread, unless workers or threads are said.

    Raises:
        MerError: as `mer infer` does.
    """
    bundle = Bundle.open(root, how.trust)
    if how.goal is None:
        threads, workers = share_out(how.device, how.threads, how.workers)
        how = replace(how, threads=threads, workers=workers)
    predictor = how.predictor(bundle, log.info)
    warm_up(predictor)
    return predictor


def opened_encoders(bundle: Bundle, how: How) -> Completion | None:
    """The encoders of a bundle, loaded, whose networks have run; None where it has none.

    Raises:
        MerError: as `mer infer` does.
    """
    completion = how.encoders(bundle)
    if completion is None:
        return None
    encodings = [e for own in completion.encoder.loaded.values() for e in own]
    if why := unreadable(e.encoder.input.kind for e in encodings):
        log.warning("%s: %s", bundle.root.name, why)
    for encoding in encodings:
        encoding.encoder.warm_up()
        if not isinstance(encoding, SignalEncoding):
            warm_up(encoding.predictor)
    return completion


def warm_up(predictor: Predictor) -> None:
    """Loads and runs every session, alone and in the batch that it is made for: no request pays for it."""
    buckets: Sequence[Bucket | None] = predictor.buckets or [None]
    for bucket in buckets:
        with ExitStack() as lent:
            for session in [lent.enter_context(predictor.lend(bucket)) for _ in range(predictor.workers)]:
                for size in {1, predictor.batch_for(bucket)}:
                    session.warm_up(size)


class Engine:
    """One opened state of a bundle. It is closed when it was replaced and the last request that uses it has ended."""

    def __init__(self, predictor: Predictor, batcher: Batcher, encoders: Encoders | None):
        self.predictor, self.batcher, self.encoders = predictor, batcher, encoders
        kinds = encoders.kinds if encoders else set()
        self.reader, self.takes = Reader(predictor, encodes_sentences="text" in kinds), taken(kinds)
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keeps it open."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def retire(self) -> None:
        """Frees it once nobody uses it."""
        await self._unused.wait()
        await asyncio.to_thread(self.batcher.close)
        if self.encoders is not None:
            await asyncio.to_thread(self.encoders.close)
        self.predictor.close()

    @contextmanager
    def submitted(self, samples: Sequence[Sample], deadline: Deadline) -> Iterator[list[list[Asked]]]:
        """Queues the parts of all samples, or none; what is not answered when the block ends is called off.

        Raises:
            Refusal: the queue is full.
            InputError: a sample that the model cannot take.
        """
        parts = [list(self.predictor.route(s)) for s in samples]
        most, room = sum(map(len, parts)), self.batcher.capacity
        if most > room:
            raise Refusal(413, f"{most} parts at once are more than the queue holds ({room}): send less")
        answers = self.batcher.submit([p for own in parts for p in own], deadline)
        following = iter(answers)
        try:
            yield [[(p, next(following)) for p in own] for own in parts]
        finally:
            self.batcher.call_off(answers)
            for answer in answers:
                if not answer.cancelled():
                    # Looked at, so that nobody is told of an error that came after another one.
                    answer.exception()

    async def predictions(self, samples: Sequence[Sample], deadline: Deadline) -> AsyncIterator[Prediction]:
        """Yields what `Predictor.predict` does, unit by unit, each as soon as it and all before it are known."""
        with self.submitted(samples, deadline) as asked:
            for sample, parts in zip(samples, asked, strict=True):
                done = 0
                for part, answer in parts:
                    kept = self.predictor.rows(await in_time(answer, deadline))[part.piece.keep]
                    for found in (
                        *self._unanswered(sample, done, part.piece.start),
                        *self.predictor.read(sample, kept, part.piece.start),
                    ):
                        yield found
                    done = part.piece.start + len(kept)
                for found in self._unanswered(sample, done, len(sample.units)):
                    yield found

    async def outputs(self, samples: Sequence[Sample], deadline: Deadline) -> list[Outputs]:
        """Every output of the contract for each sample, without batch dim and padding.

        Along the dim of the units an output has a row for each of them, NaN where it has no answer.

        Raises:
            InputError: there is nothing to read of a sample.
        """
        with self.submitted(samples, deadline) as asked:
            found = []
            for sample, parts in zip(samples, asked, strict=True):
                if not parts:
                    raise InputError(f"{sample.id}: there is nothing to read: give one modality at least")
                found.append(self._whole(sample, [(p, await in_time(a, deadline)) for p, a in parts]))
            return found

    def _whole(self, sample: Sample, answered: Sequence[tuple[Part, Outputs]]) -> Outputs:
        """The outputs of a sample whose parts ran apart: each unit from the part that it is kept of."""
        whole = dict(answered[-1][1])
        unit_dim = self.predictor.contract.unit_dim
        for spec in self.predictor.contract.outputs:
            if unit_dim in spec.dims:
                axis = spec.dims.index(unit_dim) - 1
                rows = np.moveaxis(whole[spec.name], axis, 0)
                units = np.full((len(sample.units), *rows.shape[1:]), np.nan, dtype=rows.dtype)
                for part, outputs in answered:
                    kept = np.moveaxis(outputs[spec.name], axis, 0)[part.piece.keep]
                    units[part.piece.start : part.piece.start + len(kept)] = kept
                whole[spec.name] = np.moveaxis(units, 0, axis)
        return whole

    def _unanswered(self, sample: Sample, first: int, end: int) -> Iterator[Prediction]:
        return self.predictor.read(sample, self.predictor.unanswered(end - first), first)


class Model:
    """A bundle under its name."""

    def __init__(self, root: Path, how: How, metrics: Metrics, queue: int = QUEUE):
        self.root, self.how, self.metrics, self.queue = root, how, metrics, queue
        self.name = root.resolve().name
        self._engine: Engine | None = None
        self._seen: State | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def engine(self) -> Engine:
        """The state that answers now."""
        if self._engine is None:
            raise Refusal(503, f"{self.name} is not loaded yet", {"Retry-After": "5"})
        return self._engine

    @property
    def told(self) -> str:
        """What is served: `meld (onnxruntime fp32, 2 workers)`."""
        found = self.engine.predictor
        workers = f"{found.workers} worker{'s' if found.workers > 1 else ''}"
        return f"{self.name} ({found.backend} {found.precision}, {workers})"

    @property
    def depth(self) -> int:
        """How many parts wait."""
        return self._engine.batcher.depth if self._engine else 0

    @property
    def alive(self) -> bool:
        """Whether its workers are at work."""
        return self._engine is not None and self._engine.batcher.alive

    async def open(self) -> None:
        """Opens it as it is on disk now; what was open before answers what it has begun.

        Raises:
            MerError: it cannot be opened; what was open before stays.
        """
        self._seen = self._signature()
        predictor, encoders = await asyncio.to_thread(self._loaded)
        new = Engine(predictor, Batcher(predictor, self.queue, self.metrics.of(self.name)), encoders)
        old, self._engine = self._engine, new
        self.metrics.watch_depth(self.name, lambda: self.depth)
        if old is not None:
            task = asyncio.create_task(old.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _loaded(self) -> tuple[Predictor, Encoders | None]:
        predictor = opened_predictor(self.root, self.how)
        try:
            completion = opened_encoders(predictor.bundle, self.how)
            if completion is None:
                return predictor, None
            return predictor, Encoders(completion, predictor.workers, self.queue, self.metrics.of(self.name))
        except BaseException:
            predictor.close()
            raise

    async def follow(self) -> None:
        """Looks after it for ever: warns of foreign features, opens it anew when it was changed.

        One that cannot be opened is tried again when it changes again.
        """
        while True:
            await asyncio.sleep(LOOK)
            self.judge_features()
            if self._signature() in (None, self._seen):
                continue
            try:
                await self.open()
            except Exception as error:
                self.metrics.reloads.labels(self.name, "failed").inc()
                log.error("%s was changed and cannot be opened, the state before is served: %s", self.name, error)
            else:
                self.metrics.reloads.labels(self.name, "done").inc()
                log.info("%s was changed and is served as it is now", self.name)

    async def close(self) -> None:
        """Answers what was accepted and frees everything."""
        await asyncio.gather(*self._retiring, *([self._engine.retire()] if self._engine else []))

    def judge_features(self) -> None:
        """Holds what was answered so far against the features of training."""
        features = self.engine.predictor.features
        features.tell()
        self.metrics.mark_foreign(self.name, ((f.input, f.foreign) for f in features.findings()))

    def _signature(self) -> State | None:
        """Of the manifest, which every change of a bundle replaces last."""
        try:
            found = (self.root / MANIFEST).stat()
        except OSError:
            return None
        return state_of(found)


def named(roots: Sequence[Path], how: How, metrics: Metrics, queue: int = QUEUE) -> Mapping[str, Model]:
    """Models by name, which is that of the directory; raises UsageError where two have the same."""
    found: dict[str, Model] = {}
    for root in roots:
        model = Model(root, how, metrics, queue)
        if model.name in found:
            raise UsageError(f"two bundles are called {model.name!r}: rename the directory of one of them")
        found[model.name] = model
    return found
