"""The live dialogues of one model: how many, for how long, and how much memory they take."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

from mer_export.errors import InputError, UsageError
from runtimes.predict.live import Heard


class FullError(UsageError):
    """No more dialogues, or no more memory for them, at the moment."""


class State(Protocol):
    """What is kept of dialogues when the process ends; see `storage.Folder`."""

    def load(self, dialogue: str) -> Heard | None: ...

    def save(self, heard: Heard) -> None: ...

    def mark(self, dialogue: str) -> Any: ...

    def remove(self, dialogue: str) -> bool: ...

    def expire(self, idle: float) -> None: ...


@dataclass(frozen=True)
class Limits:
    """How many dialogues are live at a time, seconds after which one that rests is over, and bytes of all of them."""

    most: int = 1024
    idle: float = 3600.0
    most_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.most < 1 or self.idle <= 0 or self.most_bytes < 1:
            raise UsageError(f"limits of live dialogues must be more than 0: {self}")


class Dialogues:
    """What was heard of each dialogue, the one that rests longest first. It may be called from any thread.

    With a `state` every utterance is stored when it was answered: a dialogue that finds no room, whose process ended,
    or that another process went on with, is read again when it goes on. Without one who comes when all is full is
    refused.
    """

    def __init__(
        self, limits: Limits = Limits(), state: State | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.limits, self.state = limits, state
        self._clock, self._lock = clock, Lock()
        self._kept: OrderedDict[str, tuple[Heard, float, int, Any]] = OrderedDict()
        """By dialogue what was heard, when its last utterance came, its bytes, and what marks it where it is stored."""
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def heard(self, dialogue: str) -> Heard:
        """What was heard of a dialogue, nothing of a new one.

        Raises:
            FullError: it is new, and there is no room for it.
        """
        with self._lock:
            self._end_idle()
            kept = self._kept.get(dialogue)
            if kept is None:
                self._require_place(dialogue)
        if kept is not None and (self.state is None or self.state.mark(dialogue) in (None, kept[-1])):
            return kept[0]
        stored = self.state.load(dialogue) if self.state else None
        return stored or Heard(dialogue)

    def keep(self, heard: Heard) -> None:
        """Notes what is heard of a dialogue after a turn.

        Raises:
            FullError: all dialogues together hold too much, or others came before a new one; it stays as it was.
        """
        size = heard.nbytes
        with self._lock:
            self._require_place(heard.id)
            before = self._kept[heard.id][2] if heard.id in self._kept else 0
            if size > self.limits.most_bytes or (
                self.state is None and self.nbytes - before + size > self.limits.most_bytes
            ):
                raise FullError(
                    f"live dialogues hold {self.nbytes} bytes of {self.limits.most_bytes} at most: end some, or keep "
                    "fewer utterances of each with --window"
                )
        mark = None
        if self.state:
            self.state.save(heard)
            mark = self.state.mark(heard.id)
        with self._lock:
            self._forget(heard.id)
            self._kept[heard.id] = heard, self._clock(), size, mark
            self.nbytes += size
            # What leaves the memory is on disk.
            while self.state and (len(self._kept) > self.limits.most or self.nbytes > self.limits.most_bytes):
                self._forget(next(iter(self._kept)))

    def end(self, dialogue: str) -> None:
        """Forgets a dialogue; raises InputError where there is none of that name."""
        with self._lock:
            there = self._forget(dialogue)
        stored = self.state.remove(dialogue) if self.state else False
        if not (there or stored):
            raise InputError(f"no dialogue {dialogue[:100]!r} is live: it was never begun, or is over")

    def _require_place(self, dialogue: str) -> None:
        if self.state is None and dialogue not in self._kept and len(self._kept) >= self.limits.most:
            raise FullError(
                f"{len(self._kept)} dialogues are live, of {self.limits.most} at most: end some, or try again later"
            )

    def _end_idle(self) -> None:
        until = self._clock() - self.limits.idle
        while self._kept and next(iter(self._kept.values()))[1] < until:
            self._forget(next(iter(self._kept)))
        if self.state:
            self.state.expire(self.limits.idle)

    def _forget(self, dialogue: str) -> bool:
        if dialogue not in self._kept:
            return False
        self.nbytes -= self._kept.pop(dialogue)[2]
        return True
