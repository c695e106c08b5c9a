"""`mer infer` in a process that says where its seconds went: starting, reading, computing, writing.

    python3 -P benchmarks/phases.py SPAWNED ARGUMENTS...

ARGUMENTS are those of `mer`, SPAWNED the time at which the process was asked for. The command of the tree that
PYTHONPATH names is run as it is, with a clock around what it calls (a microsecond a sample); the last line of standard
output is JSON. Opening sessions counts as starting.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import cli
from mer_export.data import open as reading
from runtimes.predict import output as writing
from runtimes.predict.predictor import Predictor


class Clock:
    """Seconds by part, nothing counted twice: a part that begins within another stops that one's clock."""

    def __init__(self, begun: float, now: Callable[[], float] = time.time):
        self.spent = dict.fromkeys(("start", "read", "compute", "write"), 0.0)
        self._parts, self._at, self._now = ["start"], begun, now

    def _turn(self) -> None:
        now = self._now()
        self.spent[self._parts[-1]] += now - self._at
        self._at = now

    def enter(self, part: str) -> None:
        self._turn()
        self._parts.append(part)

    def leave(self) -> None:
        self._turn()
        self._parts.pop()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call that counts for a part."""

        def run(*given: Any, **named: Any) -> Any:
            self.enter(part)
            try:
                return call(*given, **named)
            finally:
                self.leave()

        return run

    def each(self, part: str, call: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
        """A generator each of whose steps counts for a part."""

        def run(*given: Any, **named: Any) -> Iterator[Any]:
            items, step = iter(call(*given, **named)), self.timed(part, next)
            while (item := step(items, self)) is not self:
                yield item

        return run


def main() -> None:
    """Runs the command line and prints the parts."""
    clock = Clock(float(sys.argv.pop(1)))
    with (
        patch.object(reading, "stream_samples", clock.each("read", reading.stream_samples)),
        patch.object(writing, "write", clock.timed("write", writing.write)),
        patch.object(Predictor, "_run_chunk", clock.timed("compute", Predictor._run_chunk)),
        patch.object(Predictor, "_open", clock.timed("start", Predictor._open)),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            if ended.code:
                raise
    clock.leave()
    print(json.dumps(clock.spent))


if __name__ == "__main__":
    main()
