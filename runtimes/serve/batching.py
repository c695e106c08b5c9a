"""Batches by draining the queue: whatever waits when a worker is free runs together, and nothing waits for company.

Where more waits than runs together, parts of like length do: padding costs as much as what is real.
"""

from __future__ import annotations

import asyncio
import logging
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Condition, Thread
from time import monotonic
from typing import Any, TypeVar

import numpy as np

from mer_export.bucket import Bucket
from runtimes.backends.session import Session
from runtimes.predict.predictor import Part, Predictor
from runtimes.serve.metrics import ModelMetrics
from runtimes.serve.refusals import overloaded, too_late

log = logging.getLogger("mer")
Outputs = dict[str, np.ndarray]
"""What a model says of one part: every output of the contract by name, without batch dim and padding."""
Answer = TypeVar("Answer")
WINDOW = 4
"""Batches' worth of the parts that wait longest, of which those of like length run together."""


@dataclass(frozen=True, eq=False)
class Deadline:
    """Until when an answer is of use, on the clock of `monotonic`, and how long that was at first."""

    seconds: float
    until: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(seconds, monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds that are left; negative when it has passed."""
        return self.until - monotonic()


@dataclass(frozen=True, eq=False)
class Job:
    """One part that waits for its answer."""

    part: Part
    deadline: Deadline
    asked: float
    answer: asyncio.Future[Outputs]

    @property
    def size(self) -> int:
        """How long it is along all of its dims."""
        return math.prod(max(1, n) for n in self.part.piece.lengths.values())


class Batcher:
    """The queue of one predictor and the threads that empty it.

    Everything but the work itself happens in the thread of the event loop. An error of one part is that part's alone.
    """

    def __init__(self, predictor: Predictor, capacity: int, metrics: ModelMetrics):
        """Starts a thread for each worker of the predictor; called in a running event loop."""
        self.predictor, self.capacity, self.metrics = predictor, capacity, metrics
        self._loop = asyncio.get_running_loop()
        self._changed = Condition()
        self._waiting: dict[Bucket | None, deque[Job]] = {}
        self._closing = False
        names = [f"mer-serve-{i}" for i in range(predictor.workers)]
        self._threads = [Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """How many parts wait."""
        return sum(map(len, list(self._waiting.values())))

    @property
    def alive(self) -> bool:
        """Whether every worker is at work."""
        return all(t.is_alive() for t in self._threads)

    def submit(self, parts: Sequence[Part], deadline: Deadline) -> list[asyncio.Future[Outputs]]:
        """Takes all of these parts, or none.

        Raises:
            Refusal: 503, the queue is full.
        """
        now = monotonic()
        jobs = [Job(part, deadline, now, self._loop.create_future()) for part in parts]
        with self._changed:
            if self.depth + len(jobs) > self.capacity:
                raise overloaded(
                    f"{len(jobs)} more do not fit into the queue, where {self.depth} of {self.capacity} wait: "
                    "try again later, or send less at once"
                )
            for job in jobs:
                self._waiting.setdefault(job.part.bucket, deque()).append(job)
            self._changed.notify(len(jobs))
        return [job.answer for job in jobs]

    def call_off(self, answers: Sequence[asyncio.Future[Outputs]]) -> None:
        """Gives up what is not answered yet: it leaves the queue with all that it holds."""
        if not any([answer.cancel() for answer in answers]):
            return
        with self._changed:
            for bucket, queue in list(self._waiting.items()):
                self._waiting[bucket] = deque(job for job in queue if not job.answer.done())
                if not self._waiting[bucket]:
                    del self._waiting[bucket]

    def close(self) -> None:
        """Answers what waits, then ends the threads. May take as long as that takes: not for the event loop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            while batch := self._take():
                self._loop.call_soon_threadsafe(_settle, self._answered(batch))
        except BaseException:
            # Nobody would hear of it otherwise: health says that a worker is gone.
            log.exception("a worker died")

    def _take(self) -> list[Job]:
        """The next batch: of the bucket whose first part waits longest, that and as many as run with it.

        Empty at the end.
        """
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return []
                self._changed.wait()
            bucket = min(self._waiting, key=lambda b: self._waiting[b][0].asked)
            queue = self._waiting[bucket]
            batch = _alike(queue, self.predictor.batch_for(bucket))
            if not queue:
                del self._waiting[bucket]
            return batch

    def _answered(self, batch: Sequence[Job]) -> list[tuple[Job, Outputs | Exception]]:
        now = monotonic()
        waited_for = [job for job in batch if not job.answer.done()]
        late = [job for job in waited_for if job.deadline.until < now]
        live = [job for job in waited_for if job.deadline.until >= now]
        found: list[tuple[Job, Outputs | Exception]] = [(job, too_late(job.deadline.seconds)) for job in late]
        if live:
            self.metrics.batch.observe(len(live))
            for job in live:
                self.metrics.queue.observe(now - job.asked)
            try:
                with self.predictor.lend(live[0].part.bucket) as session:
                    found += self._run(session, live)
            except Exception as error:
                found += [(job, error) for job in live]
        return found

    def _run(self, session: Session, jobs: Sequence[Job]) -> list[tuple[Job, Outputs | Exception]]:
        parts = [job.part for job in jobs]
        try:
            with self.metrics.collate.time():
                arrays = self.predictor.pad(session, parts)
            with self.metrics.run.time():
                outputs = session.run(arrays)
            return list(zip(jobs, self.predictor.cut(outputs, parts), strict=True))
        except Exception as error:
            if len(jobs) == 1:
                return [(jobs[0], error)]
            # One that cannot be answered takes none of its neighbours with it.
            return [found for job in jobs for found in self._run(session, [job])]


def _alike(queue: deque[Job], most: int) -> list[Job]:
    """Takes the part that waits longest out of a queue, and those that run together with it at the least cost.

    They are no longer than it is, if there are enough of them: so nothing waits for more batches than parts were there
    before it.
    """
    if len(queue) <= most:
        batch = list(queue)
        queue.clear()
        return batch
    oldest = list(islice(queue, WINDOW * most))
    sizes = {job: job.size for job in oldest}
    by_size = sorted(oldest, key=sizes.__getitem__)
    # Of those as long as the first one as many as leave room for it.
    no_longer = bisect_right(by_size, sizes[oldest[0]], key=sizes.__getitem__)
    end = max(most, min(no_longer, by_size.index(oldest[0]) + most))
    batch = by_size[end - most : end]
    for _ in oldest:
        queue.popleft()
    taken = set(batch)
    queue.extendleft(job for job in reversed(oldest) if job not in taken)
    return batch


async def in_time(answer: Awaitable[Answer], deadline: Deadline) -> Answer:
    """The answer; raises Refusal (504) where it does not come in time."""
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline.left):
            return await answer
    except TimeoutError:
        raise too_late(deadline.seconds) from None


def _settle(found: Sequence[tuple[Job, Any]]) -> None:
    """In the event loop: hands out the answers of a batch to those who still wait."""
    for job, answer in found:
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
