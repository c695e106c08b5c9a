"""Requests through the encoders of a bundle: sentences and recordings become the features that the model reads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from mer_export.data.dialogues import Dialogue, Recording
from mer_export.data.open import Through
from mer_export.data.samples import Sample
from mer_export.errors import InputError
from mer_export.untrusted.places import Reach
from runtimes.features.completed import Completion
from runtimes.serve.batching import Deadline, in_time
from runtimes.serve.metrics import ModelMetrics
from runtimes.serve.reading import Asked
from runtimes.serve.recordings import Place
from runtimes.serve.refusals import overloaded, too_late
from runtimes.serve.scratch import Scratch


class Reads(Protocol):
    """What makes samples of a request: a `Reader`, or who listens to a live dialogue."""

    def samples(self, asked: Asked, through: Through) -> list[Sample]: ...


class Encoders:
    """The loaded encoders of a bundle, and threads that answer requests with them.

    Libraries that decode take files: those of a request lie in a folder of its own that only this user reads, and that
    goes when it is encoded.
    """

    def __init__(self, completion: Completion, workers: int, capacity: int, metrics: ModelMetrics):
        """`capacity` is how many requests may wait for a thread."""
        self.completion, self.capacity, self.metrics = completion, capacity, metrics
        self.kinds = {e.encoder.input.kind for own in completion.encoder.loaded.values() for e in own}
        self._most = workers + capacity
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="mer-encode")
        self._begun: set[Future[list[Sample]]] = set()
        self._scratch = Scratch()

    async def samples(self, reader: Reads, asked: Asked, deadline: Deadline) -> list[Sample]:
        """What `reader` makes of a request, with the features of its sentences and recordings.

        Raises:
            InputError: a recording that cannot be read, or as `Reader.samples`.
            Refusal: 503, too many wait; 504, not in time.
        """
        if len(self._begun) >= self._most:
            raise overloaded(f"the encoders have {len(self._begun)} requests, of {self._most} at most: try again later")
        # Taken out by whoever begins or calls it off: the pool keeps what it is given until a thread is free.
        waiting = [asked]
        work = self._pool.submit(self._made, reader, waiting, deadline)
        self._begun.add(work)
        work.add_done_callback(self._begun.discard)
        work.add_done_callback(lambda _: waiting.clear())
        return await in_time(asyncio.wrap_future(work), deadline)

    def close(self) -> None:
        """Ends the threads and frees the networks. May take a while: not for the event loop."""
        self._pool.shutdown()
        self._scratch.close()
        self.completion.close()

    def _made(self, reader: Reads, waiting: list[Asked], deadline: Deadline) -> list[Sample]:
        asked = waiting.pop()
        with self.metrics.encode.time(), self._scratch.folder() as folder:
            try:
                return reader.samples(asked, lambda d: self._completed(d, asked, folder, deadline))
            except InputError as error:
                raise InputError(_told(str(error), asked, folder)) from None

    def _completed(
        self, dialogues: Iterable[Dialogue], asked: Asked, folder: Path, deadline: Deadline
    ) -> Iterator[Dialogue]:
        whole = list(dialogues)
        # One by one, so that none is begun after the deadline.
        done = self.completion.strict()(_alone(whole, asked, folder, deadline))
        for dialogue in whole:
            yield replace(dialogue, utterances=[next(done).utterances[0] for _ in dialogue.utterances])


def _alone(dialogues: Iterable[Dialogue], asked: Asked, folder: Path, deadline: Deadline) -> Iterator[Dialogue]:
    """Each utterance as a dialogue, its recording in a file."""
    reach = Reach(folder)
    for number, dialogue in enumerate(dialogues):
        for place, utterance in enumerate(dialogue.utterances):
            if deadline.left < 0:
                raise too_late(deadline.seconds)
            clip = asked.clips.get((number, place))
            if clip is not None:
                name = _file((number, place))
                (folder / name).write_bytes(clip.content)
                utterance = replace(utterance, recording=Recording(name, clip.where, reach))
            yield replace(dialogue, utterances=[utterance])


def _file(place: Place) -> str:
    return "{}-{}.clip".format(*place)


def _told(sentence: str, asked: Asked, folder: Path) -> str:
    """A sentence without names of files that only this server knows."""
    for place, clip in asked.clips.items():
        sentence = sentence.replace(str(folder / _file(place)), clip.where)
    return sentence
