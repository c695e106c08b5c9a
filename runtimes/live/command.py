"""What `mer infer --live` does."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mer_export.errors import UsageError
from mer_export.untrusted.places import Allowed, Reach
from runtimes.features.completed import Completion
from runtimes.live.dialogues import Dialogues, Limits
from runtimes.live.lines import Lines
from runtimes.live.storage import Folder
from runtimes.predict.live import Hearing
from runtimes.predict.output import STDOUT
from runtimes.predict.predictor import Predictor


@dataclass(frozen=True)
class Live:
    """The options of `--live`: see `Hearing`, and the folder that keeps the dialogues for the next start."""

    window: int | None = None
    revise: int | None = None
    state: Path | None = None

    def given(self) -> list[str]:
        """Those that were said."""
        return [f"--{name}" for name, value in vars(self).items() if value is not None]


def check(live: bool, options: Live, out: Path | None, others: Mapping[str, Any]) -> None:
    """Raises UsageError for options that say two things; `others` are those that a data set has and lines have not."""
    if not live:
        if options.given():
            raise UsageError(f"{options.given()[0]} is of live dialogues: pass --live too, or leave it out")
        return
    said = [name for name, value in others.items() if value]
    if said:
        raise UsageError(f"--live reads utterances from standard input: leave {said[0]} out")
    if out not in (None, STDOUT):
        raise UsageError(f"--live answers on standard output: leave --out {out} out, and redirect it")


def answer_lines(
    predictor: Predictor,
    completion: Completion | None,
    options: Live,
    outside: Iterable[Path] | None = None,
    lines: Iterable[bytes] | None = None,
) -> dict[str, int]:
    """Answers standard input on standard output until it ends.

    Args:
        predictor: of the bundle.
        completion: its encoders, loaded.
        options: of the command line.
        outside: folders beside the working directory that recordings may lie in.
        lines: instead of standard input.

    Returns:
        How many lines were answered, and how many dialogues are live.

    Raises:
        InputError: some lines could not be answered.
    """
    reach, through = Reach(Path.cwd(), Allowed.by(outside)), completion.strict() if completion else None
    hearing = Hearing(predictor.bundle, predictor.task.labels, options.window, options.revise, reach, through)
    state = Folder(options.state, predictor.bundle) if options.state else None
    return Lines(predictor, hearing, Dialogues(Limits(), state)).run(lines or _stdin(), _show)


def _stdin() -> BinaryIO:
    """Standard input under a lock of its own: in that of `sys.stdin` a waiting thread keeps Python from ending."""
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:
        return sys.stdin.buffer


def _show(line: str) -> None:
    print(line, flush=True)
