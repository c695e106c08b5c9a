"""A bundle that answers: its encoders and its network behind them, how both run, and which data they read.

Every command that answers with bundles opens them here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mer_export.bundle import Bundle
from mer_export.contract import Table
from mer_export.data.bundle_data import AUTO
from runtimes.backends.session import SessionOptions
from runtimes.features.completed import Completion
from runtimes.predict.opening import open_predictor
from runtimes.predict.output import check_beside
from runtimes.predict.predictor import Overflow, Predictor

Say = Callable[[str], None]


def silent(line: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class How:
    """How bundles answer, as the command line says it; goes to other processes and machines.

    See `open_predictor` for what is None; without `workers` a goal or the machine profile says how many.
    """

    runtime: str | None = None
    device: str = "cpu"
    threads: int | None = None
    batch: int | None = None
    precision: str | None = None
    goal: str | None = None
    cuda_graph: bool = False
    overflow: Overflow = "error"
    beside: tuple[str, ...] = ()
    """Columns of the answers beside the usual ones."""
    shared: Mapping[str, Table] | None = None
    """Other values of inputs that all samples share, such as emotions."""
    strict_features: bool = False
    workers: int | None = None
    most_workers: int | None = None
    """Of the machine profile only ways of so many sessions: 1 where several processes share the cores."""
    trust: bool = False

    @property
    def session(self) -> SessionOptions:
        """What of it a backend is told."""
        return SessionOptions(self.device, self.threads, cuda_graph=self.cuda_graph)

    def predictor(self, bundle: Bundle, say: Say = silent, once: bool = False) -> Predictor:
        """What answers samples with the network; raises as `open_predictor`. `say` is told what was chosen, `once` is
        as in `Predictor`."""
        return open_predictor(
            *(bundle, self.runtime, self.session, self.batch, self.precision, self.goal, say, self.workers),
            most_workers=self.most_workers,
            overflow=self.overflow,
            shared=self.shared,
            strict_features=self.strict_features,
            gold="gold" in self.beside,
            once=once,
        )

    def encoders(self, bundle: Bundle, say: Say = silent) -> Completion | None:
        """The encoders of a bundle, loaded; None where it has none. Raises as `Completion.of`."""
        if not bundle.manifest.encoders:
            return None
        return Completion.of(bundle, goal=self.goal, say=say, backend=self.runtime, options=self.session)


@dataclass(frozen=True)
class Reading:
    """Which data and how they are read, as the command line says it."""

    inputs: Sequence[str]
    data_format: str = AUTO
    sets: Sequence[str] = ()
    outside: Sequence[Path] | None = None
    split: str | None = None


class Pipeline:
    """A bundle that is open for answers in one process. Used as a context manager, or closed by hand."""

    def __init__(self, bundle: Bundle, how: How, say: Say = silent, once: bool = False):
        """Loads the encoders; the network is loaded when a sample first needs it.

        Args:
            bundle: opened bundle.
            how: of the command line.
            say: told what was chosen to run it.
            once: it answers one data set, and is closed.

        Raises:
            UsageError: no such column beside the answers, or as `open_predictor`.
        """
        check_beside(how.beside)
        self.bundle, self.how = bundle, how
        self.predictor = how.predictor(bundle, say, once)
        self.completion = how.encoders(bundle, say)
        # Other emotions than the data are labelled with are no reason to refuse the data.
        self.labels = None if how.shared and not self.predictor.gold else self.predictor.task.labels

    @property
    def unreadable(self) -> int:
        """Utterances so far with a file that cannot be read."""
        return self.completion.unreadable if self.completion else 0

    def close(self) -> None:
        """Frees every loaded network."""
        self.predictor.close()
        if self.completion:
            self.completion.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
