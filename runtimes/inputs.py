"""What `mer infer` answers: a file into a file, files in blocks that workers share, or utterances as they are said.

Each is made of the options that it reads; `refuse_unread` refuses the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mer_export.bundle import Bundle
from mer_export.console import refuse_existing
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.open import stream_samples
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import UsageError
from mer_export.progress import SILENT, Progress
from runtimes.pipeline import How, Pipeline, Reading, Say, silent
from runtimes.predict import output
from runtimes.predict.preview import preview

Group = Literal["data", "blocks", "live"]
"""Options that belong together: of data sets, of blocks of them, and of live dialogues."""
Kind = Literal["file", "blocks", "live"]

READS: Mapping[Kind, Sequence[Group]] = {"file": ("data",), "blocks": ("data", "blocks"), "live": ("live",)}
"""Options that one kind of input reads beside those of all."""

OF_LINES = "--live reads utterances from standard input: leave {name} out"
UNREAD: Mapping[tuple[Kind, Group], str] = {
    ("live", "data"): OF_LINES,
    ("live", "blocks"): OF_LINES,
    ("file", "live"): "{name} is of live dialogues: pass --live too, or leave it out",
    ("blocks", "live"): "{name} is of live dialogues: pass --live too, or leave it out",
    ("file", "blocks"): "{name} {value} cuts what --shards or --cluster spread: pass one of them, or leave it out",
}
"""What is said of an option that an input does not read."""


class Input(Protocol):
    """What a command line asks to have answered."""

    @property
    def prints(self) -> bool:
        """Whether the answers go to standard output, and so what is said of them to standard error."""
        ...

    def check(self) -> None:
        """Looks at what needs no bundle; raises UsageError or NotAvailableError for what cannot be."""
        ...

    def plan(self) -> dict[str, Any]:
        """What `answer` would do, found out by reading the data."""
        ...

    def answer(self) -> dict[str, Any]:
        """Answers everything and says what came of it."""
        ...


def refuse_unread(kind: Kind, said: Mapping[Group, Mapping[str, Any]]) -> None:
    """Raises UsageError for an option that is said and that this kind of input does not read.

    Args:
        kind: of the input that is asked for.
        said: the values of each group's options by their names; None, False or empty where one is not said.
    """
    for group in (g for g in said if g not in READS[kind]):
        for name, value in said[group].items():
            if value is not None and value is not False and value != []:
                shown = f"{value:g}" if isinstance(value, float) else value
                raise UsageError(UNREAD[kind, group].format(name=name, value=shown))


@dataclass(frozen=True)
class FileInput:
    """A data set that is answered into one file, or on standard output, in its order."""

    bundle: Path
    how: How
    reading: Reading
    out: Path
    force: bool = False
    progress: Progress = SILENT
    say: Say = silent

    @property
    def prints(self) -> bool:
        """Whether the answers go to standard output."""
        return self.out == output.STDOUT

    def check(self) -> None:
        """Raises UsageError for several inputs, and for a file that cannot or must not be written."""
        count = len(self.reading.inputs)
        if count > 1:
            raise UsageError(f"{count} inputs are answered in blocks: pass --shards 1, and a directory as --out")
        output.check_out(self.out)
        if not self.prints:
            refuse_existing(self.out, self.force)

    def plan(self) -> dict[str, Any]:
        """Which variants would answer how much, and how the data are read.

        Raises:
            MerError: as `preview`.
        """
        with self._opened() as (pipeline, spec, samples):
            asked = {"bundle": str(self.bundle), "input": self.reading.inputs[0], "out": str(self.out)}
            found = {"overflow": self.how.overflow} | preview(pipeline.predictor, samples)
            return asked | found | {"data": spec.model_dump(mode="json")}

    def answer(self) -> dict[str, Any]:
        """Writes every answer; returns how many there are, and what gave them.

        Raises:
            MerError: as `output.write` and `Predictor.predict`.
        """
        with self._opened() as (pipeline, _, samples):
            predictor, beside = pipeline.predictor, self.how.beside
            counts = output.write(predictor.predict(samples), self.out, predictor.task, beside, self.progress)
            found: dict[str, Any] = {"out": str(self.out), **counts}
            found |= {"runtime": predictor.backend, "precision": predictor.precision}
            found |= {"variants": predictor.answered_by, **predictor.features.summary()}
            found |= {"unreadable": pipeline.unreadable} if pipeline.completion else {}
            if advice := predictor.filling.advice(self.bundle):
                self.say(advice)
        return found

    @contextmanager
    def _opened(self) -> Iterator[tuple[Pipeline, DataSpec, Iterator[Sample]]]:
        bundle, read = Bundle.open(self.bundle, self.how.trust), self.reading
        path = Path(read.inputs[0])
        spec = bundle_spec(bundle, path, read.data_format, read.sets, read.outside)
        with Pipeline(bundle, self.how, self.say, once=True) as pipeline:
            yield pipeline, spec, stream_samples(path, spec, pipeline.labels, read.split, pipeline.completion)
