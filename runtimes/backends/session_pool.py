"""Several sessions of one model side by side: more answers per second where one call does not scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from queue import SimpleQueue
from typing import Self, TypeVar

from runtimes.backends.session import Session

Item = TypeVar("Item")
Made = TypeVar("Made")


class Crew:
    """`workers` sessions that `open_one` gives; one for all where its engine computes calls side by side.

    `open_one` is told how many calls will come side by side (`SessionOptions.streams`).
    """

    def __init__(self, open_one: Callable[[int], Session], workers: int):
        with ExitStack() as opened:
            own = [opened.enter_context(closing(open_one(workers)))]
            while len(own) < workers and not own[0].concurrent:
                own.append(opened.enter_context(closing(open_one(workers))))
            self._opened = opened.pop_all()
        self._free: SimpleQueue[Session] = SimpleQueue()
        for number in range(workers):
            self._free.put(own[number % len(own)])
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="mer-crew")

    def map(self, work: Callable[[Session, Item], Made], items: Iterable[Item]) -> Iterator[Made]:
        """`work(session, item)` for every item, in order; as many at a time as there are workers."""
        return self._pool.map(lambda item: self._with_session(work, item), items)

    def _with_session(self, work: Callable[[Session, Item], Made], item: Item) -> Made:
        with self.lend() as session:
            return work(session, item)

    @contextmanager
    def lend(self) -> Iterator[Session]:
        """One of the sessions, as soon as one is free."""
        session = self._free.get()
        try:
            yield session
        finally:
            self._free.put(session)

    def close(self) -> None:
        """Ends the threads and frees the sessions."""
        self._pool.shutdown(cancel_futures=True)
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
