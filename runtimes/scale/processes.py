"""Workers that are processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait

from mer_export.launcher import module_command
from runtimes.scale.blocks import Asked, Block, BlockWorker, Broken, Died, Event, Ready

MODULE = "runtimes.scale.processes"


@dataclass
class _Hand:
    """A process, the block that it is at, and whether it was ever ready."""

    process: subprocess.Popen[bytes]
    block: Block | None = None
    began: bool = False


class ProcessCrew:
    """Processes that take blocks over pipes; see `runtimes.scale.run.Crew`."""

    def __init__(self, asked: Asked, count: int):
        self.asked = asked
        self._hands: dict[Connection, _Hand] = {}
        for _ in range(count):
            self._start()

    @classmethod
    @contextmanager
    def hired(cls, asked: Asked, count: int) -> Iterator[ProcessCrew]:
        """A crew that is gone when the block ends."""
        crew = cls(asked, count)
        try:
            yield crew
        finally:
            crew.close()

    @property
    def free(self) -> int:
        """How many are ready and have no block."""
        return sum(h.began and h.block is None for h in self._hands.values())

    def give(self, block: Block) -> None:
        """A block for one that is free."""
        line, hand = next((c, h) for c, h in self._hands.items() if h.began and h.block is None)
        hand.block = block
        _send(line, block)

    def event(self) -> Event:
        """The next thing that happens; waits for it."""
        line = wait(list(self._hands))[0]
        assert isinstance(line, Connection)
        hand = self._hands[line]
        try:
            event: Event = line.recv()
        except (EOFError, OSError):
            return self._bury(line)
        hand.began |= isinstance(event, Ready)
        hand.block = None
        return event

    def close(self) -> None:
        """Ends all of them, whatever they are at."""
        for line, hand in self._hands.items():
            hand.process.kill()
            line.close()
        for hand in self._hands.values():
            hand.process.wait()

    def _start(self) -> None:
        own, theirs = Pipe()
        words = module_command(MODULE, str(theirs.fileno()))
        # Standard output is for the result of the command.
        process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2)
        theirs.close()
        self._hands[own] = _Hand(process)
        _send(own, self.asked)

    def _bury(self, line: Connection) -> Died:
        hand = self._hands.pop(line)
        line.close()
        code = hand.process.wait()
        self._start()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Died(hand.block, f"its worker {how}", hand.began)


def _send(line: Connection, what: Asked | Block) -> None:
    try:
        line.send(what)
    except OSError:
        # It has just died, which its end of the line is about to say.
        return


def main() -> None:
    """A worker: what is asked and then blocks come over the descriptor that it is told, until that is closed."""
    # Ctrl-C is for whoever started it, who then closes the line.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = Connection(int(sys.argv[1]))
    try:
        worker = BlockWorker(line.recv())
        began = worker.begin()
        line.send(began)
        while not isinstance(began, Broken):
            line.send(worker.answer(line.recv()))
    except (EOFError, OSError):
        # Whoever asked is gone.
        os._exit(0)


if __name__ == "__main__":
    main()
