"""Standard output and error when nobody can take them: work goes on, and only results that are lost are a failure.

Whoever reads through `| head` has seen enough, so what comes after is dropped and the command ends with its own exit
code. A full device is another thing: a result that it does not take is an error, progress that it does not take is not.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

OUTPUT = "standard output"


class Outlet(io.FileIO):
    """A standard stream that falls silent once it cannot be written."""

    def __init__(self, descriptor: int, required: bool):
        super().__init__(descriptor, "wb", closefd=False)
        self.required = required

    def write(self, content: object) -> int:
        """Raises OSError once, with the stream as its file, where a required result is lost."""
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError as error:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
            if self.required and not isinstance(error, BrokenPipeError):
                error.filename = OUTPUT
                raise
            return len(memoryview(content).cast("B"))  # type: ignore[arg-type]


def open_outlets() -> None:
    """Puts an outlet in place of each of the process's own streams; what a test or a notebook put there stays."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = _over(sys.stdout, required=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _over(sys.stderr, required=False)


def _over(stream: TextIO | None, required: bool) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    buffer = io.BufferedWriter(Outlet(stream.fileno(), required))
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors, line_buffering=getattr(stream, "line_buffering", False)
    )
