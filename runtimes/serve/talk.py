"""Live dialogues over HTTP: utterances one at a time, each answered with what was said before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from mer_export.bundle import Bundle
from mer_export.data.open import Through
from mer_export.data.samples import Sample
from mer_export.errors import InputError
from runtimes.live.dialogues import Dialogues, FullError, Limits
from runtimes.live.lines import answer_row, turn_of
from runtimes.live.storage import Folder, model_key
from runtimes.predict.live import Heard, Hearing, Turn
from runtimes.serve import recordings
from runtimes.serve.batching import Deadline
from runtimes.serve.models import Engine, Model
from runtimes.serve.reading import Asked
from runtimes.serve.refusals import Refusal, overloaded


@dataclass(frozen=True)
class Options:
    """How many live dialogues a model has and for how long, how much of each is heard, and where they are kept."""

    limits: Limits = field(default_factory=Limits)
    window: int | None = None
    state: Path | None = None


@dataclass
class Listener:
    """Makes a turn of an utterance, where a request is read: as a `Reader` makes samples."""

    hearing: Hearing
    heard: Heard
    line: Mapping[str, Any]
    turn: Turn | None = None

    def samples(self, asked: Asked, through: Through | None = None) -> list[Sample]:
        """What the utterance asks to be answered; raises InputError as `Hearing`."""
        self.turn = turn_of(replace(self.hearing, through=through), self.heard, self.line)
        return list(self.turn.samples)


@dataclass(frozen=True)
class Opened:
    """What turns need of one opened state of a bundle; `key` says which features its dialogues hold."""

    engine: Engine
    key: str
    hearing: Hearing
    dialogues: Dialogues


@dataclass
class Talk:
    """The live dialogues of one model. Turns of one dialogue are taken one after the other.

    They go on when the bundle is opened anew, unless it reads other features then: new ones begin.
    """

    model: Model
    options: Options
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    _last: Opened | None = None

    async def say(self, dialogue: str, line: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        """The answer to an utterance.

        Raises:
            InputError: the model cannot take it, or its dialogue.
            Refusal: 503, no room for another dialogue, or as any request.
        """
        clips = recordings.clips_in([("the body", {"utterances": [line]})], {})
        asked = Asked([("the body", line)], clips=clips)
        async with self._turns(dialogue):
            engine = self.model.engine
            with engine.used(), _room():
                recordings.require_taken(clips.values(), engine.takes)
                opened = self._opened(engine)
                heard = await asyncio.to_thread(opened.dialogues.heard, dialogue)
                listener = Listener(opened.hearing, heard, line)
                if engine.encoders is None:
                    samples = await asyncio.to_thread(listener.samples, asked)
                else:
                    samples = await engine.encoders.samples(listener, asked, deadline)
                assert listener.turn is not None
                answer = listener.turn.answer([p async for p in engine.predictions(samples, deadline)])
                await asyncio.to_thread(opened.dialogues.keep, listener.turn.after)
                engine.predictor.features.add(listener.turn.spoken)
        return answer_row(dialogue, answer, engine.predictor.task)

    async def end(self, dialogue: str) -> None:
        """Forgets a dialogue; raises Refusal (404) where there is none."""
        async with self._turns(dialogue):
            try:
                await asyncio.to_thread(self._opened(self.model.engine).dialogues.end, dialogue)
            except InputError as error:
                raise Refusal(404, str(error)) from None

    def _turns(self, dialogue: str) -> asyncio.Lock:
        return self._locks.setdefault(dialogue, asyncio.Lock())

    def _opened(self, engine: Engine) -> Opened:
        last = self._last
        if last is None or last.engine is not engine:
            bundle, labels = engine.predictor.bundle, engine.predictor.task.labels
            key, hearing = model_key(bundle), Hearing(bundle, labels, self.options.window)
            dialogues = last.dialogues if last and last.key == key else self._fresh(bundle)
            last = self._last = Opened(engine, key, hearing, dialogues)
        return last

    def _fresh(self, bundle: Bundle) -> Dialogues:
        root = self.options.state
        return Dialogues(self.options.limits, Folder(root / self.model.name, bundle) if root else None)


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except FullError as error:
        raise overloaded(str(error)) from None
