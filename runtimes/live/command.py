"""`mer infer --live`: utterances as they are said."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from mer_export.bundle import Bundle
from mer_export.errors import UsageError
from mer_export.untrusted.places import Allowed, Reach
from runtimes.live.dialogues import Dialogues, Limits
from runtimes.live.lines import Lines
from runtimes.live.storage import Folder
from runtimes.pipeline import How, Pipeline, Say, silent
from runtimes.predict.live import Hearing
from runtimes.predict.output import STDOUT


@dataclass(frozen=True)
class Live:
    """Utterances that come one a line on standard input and are answered on standard output, each at once.

    `window` and `revise` are as of `Hearing`, `state` is the folder that keeps the dialogues for the next start, and
    `outside` are folders beside the working directory that recordings may lie in.
    """

    bundle: Path
    how: How
    out: Path | None = None
    window: int | None = None
    revise: int | None = None
    state: Path | None = None
    outside: Sequence[Path] | None = None
    say: Say = silent
    prints: ClassVar[bool] = True

    def check(self) -> None:
        """Raises UsageError for a file to write to."""
        if self.out not in (None, STDOUT):
            raise UsageError(f"--live answers on standard output: leave --out {self.out} out, and redirect it")

    def plan(self) -> dict[str, Any]:
        """Raises UsageError: what will be said is not there to be read."""
        raise UsageError("--live reads utterances from standard input: leave --dry-run out")

    def answer(self, lines: Iterable[bytes] | None = None) -> dict[str, Any]:
        """Answers standard input, or other `lines`, until it ends.

        Returns:
            How many lines were answered, and how many dialogues are live.

        Raises:
            InputError: some lines could not be answered.
        """
        with Pipeline(Bundle.open(self.bundle, self.how.trust), self.how, self.say) as pipeline:
            predictor, through = pipeline.predictor, pipeline.completion and pipeline.completion.strict()
            reach, labels = Reach(Path.cwd(), Allowed.by(self.outside)), predictor.task.labels
            hearing = Hearing(pipeline.bundle, labels, self.window, self.revise, reach, through)
            dialogues = Dialogues()
            if self.state:
                # What is kept for the next start is over when its end is said.
                dialogues = Dialogues(Limits(idle=math.inf), Folder(self.state, pipeline.bundle))
            return Lines(predictor, hearing, dialogues).run(lines or _stdin(), _show)


def _stdin() -> BinaryIO:
    """Standard input under a lock of its own: in that of `sys.stdin` a waiting thread keeps Python from ending.

    One that was closed on purpose is empty.
    """
    if sys.stdin is None:
        return BytesIO()
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:
        return sys.stdin.buffer


def _show(line: str) -> None:
    print(line, flush=True)
