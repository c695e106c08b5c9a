"""Interleaved timing of several callables in one process: warm up, then A B A B in shuffled rounds.

Rounds make every candidate see the same disturbances of the machine, so that ratios taken per round hold where
absolute times do not.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mer_export.bundle import Strict
from mer_export.progress import duration

PAUSE = 0.015
"""Seconds before each turn: idle workers of one runtime keep spinning for a while and would slow the next one."""
LONG_CALL = 0.2
"""Seconds; shorter calls are preceded by an untimed one, which brings caches and thread pools back."""
TURN = 0.02
"""Seconds that the timed calls of one turn aim to fill, with at most `CALLS` calls."""
CALLS = 10

Call = Callable[[], object]


@dataclass(frozen=True)
class Clock:
    """Where times come from, in seconds: the machine's own clocks, or those of a test."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep

    def time(self, call: Call) -> tuple[float, float]:
        """Wall-clock and CPU seconds of one call."""
        wall, cpu = self.wall(), self.cpu()
        call()
        return self.wall() - wall, self.cpu() - cpu


MACHINE = Clock()


class Deadline:
    """So many seconds from now on."""

    def __init__(self, seconds: float, clock: Clock = MACHINE):
        self.clock, self.seconds, self.end = clock, seconds, clock.wall() + seconds

    def part(self, share: float) -> Deadline:
        """The earlier one at which this share of the time is over."""
        found = copy.copy(self)
        found.seconds, found.end = share * self.seconds, self.end - (1 - share) * self.seconds
        return found

    @property
    def left(self) -> float:
        """Seconds, below 0 where it is over."""
        return self.end - self.clock.wall()

    @property
    def over(self) -> bool:
        return self.left <= 0

    @property
    def text(self) -> str:
        """`at most 1 min 20 s left`."""
        return f"at most {duration(max(0.0, self.left))} left"


class Quartiles(Strict):
    """Median and spread over rounds."""

    median: float
    q25: float
    q75: float

    @classmethod
    def of(cls, values: list[float] | np.ndarray) -> Quartiles:
        q25, median, q75 = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(median=float(median), q25=float(q25), q75=float(q75))


class Latency(Strict):
    """Milliseconds per call: percentiles of wall-clock time, and process CPU time over all threads."""

    calls: int
    p50: float
    p90: float
    p99: float
    longest: float
    cpu_p50: float


class WarmUp(Strict):
    """How many calls it took until times were stable; `stable` is False where the limit came first."""

    calls: int
    first_ms: float
    stable: bool


@dataclass
class Turns:
    """Raw times in seconds, one list of calls per round."""

    wall: list[list[float]] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)

    def latency(self) -> Latency:
        wall = 1000 * np.concatenate(self.wall)
        p50, p90, p99 = np.quantile(wall, (0.5, 0.9, 0.99))
        return Latency(
            calls=len(wall),
            p50=float(p50),
            p90=float(p90),
            p99=float(p99),
            longest=float(wall.max()),
            cpu_p50=float(1000 * np.median(np.concatenate(self.cpu))),
        )


def warm_up(call: Call, seconds: float = 2.0, most: int = 30, clock: Clock = MACHINE) -> WarmUp:
    """Calls until the medians of the last two threes are within 10 %, for at most about `seconds` or `most` calls."""
    times: list[float] = []
    began = clock.wall()
    stable = False
    while len(times) < most and not stable and (len(times) < 2 or clock.wall() - began < seconds):
        times.append(clock.time(call)[0])
        if len(times) >= 6:
            before, now = np.median(times[-6:-3]), np.median(times[-3:])
            stable = bool(abs(now - before) <= 0.1 * before)
    return WarmUp(calls=len(times), first_ms=1000 * times[0], stable=stable)


def interleave(
    calls: Mapping[str, Call],
    rounds: int,
    pause: float = PAUSE,
    seed: int = 0,
    clock: Clock = MACHINE,
    broken: dict[str, Exception] | None = None,
    until: Deadline | None = None,
    ran: Mapping[str, float] | None = None,
) -> dict[str, Turns]:
    """Times every call once per round (short ones several times in a row), in an order drawn for each round.

    Each runs once before, but those that `ran` already, in so many seconds. No round after the first begins that would
    end past the deadline. A call that raises is timed no more and has no turns; what it raised is put into `broken`, or
    raised without that.
    """
    random = np.random.default_rng(seed)
    turns = {name: Turns() for name in calls}
    expected = dict(ran or {})

    def attempt(name: str, work: Callable[[], float]) -> None:
        try:
            expected[name] = work()
        except Exception as error:
            if broken is None:
                raise
            broken[name] = error
            del turns[name]

    for name in [n for n in calls if n not in expected]:
        attempt(name, partial(_seconds, calls[name], clock))
    for number in range(rounds):
        if number and until is not None and until.left <= sum(map(turn_seconds, expected.values())):
            break
        for name in random.permutation(list(turns)).tolist():
            clock.sleep(pause)
            attempt(name, partial(_turn, calls[name], turns[name], expected[name], clock))
    return turns


def _seconds(call: Call, clock: Clock) -> float:
    return clock.time(call)[0]


def _turn(call: Call, turns: Turns, expected: float, clock: Clock) -> float:
    """Adds the calls of one turn; returns the seconds of the shortest call so far."""
    untimed = int(expected < LONG_CALL)
    for _ in range(untimed):
        call()
    timed = [clock.time(call) for _ in range(_turn_calls(expected) - untimed)]
    turns.wall.append([wall for wall, _ in timed])
    turns.cpu.append([cpu for _, cpu in timed])
    return min(expected, *(wall for wall, _ in timed))


def turn_seconds(expected: float) -> float:
    """What a turn of a call takes that is expected to take so many seconds."""
    return _turn_calls(expected) * expected


def _turn_calls(expected: float) -> int:
    """How many calls a turn has, with the one that is not timed."""
    return int(np.clip(TURN / max(expected, 1e-6), 1, CALLS)) + int(expected < LONG_CALL)


def ratio(base: Turns, other: Turns, cpu: bool = False) -> Quartiles:
    """How many times faster `other` is than `base`: base / other of each round's medians, over rounds."""
    a, b = (base.cpu, other.cpu) if cpu else (base.wall, other.wall)
    return Quartiles.of([float(np.median(x) / max(np.median(y), 1e-9)) for x, y in zip(a, b, strict=True)])
