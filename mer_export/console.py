"""What the commands of several packages share: options, and how a result, a plan and progress are shown.

Data goes to standard output, progress to standard error.
"""

from __future__ import annotations

import logging
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mer_export import __version__
from mer_export.agreement.policy import RULES
from mer_export.cuda import DEVICES
from mer_export.errors import NotAvailableError, UsageError
from mer_export.terminal import json_text, outline

log = logging.getLogger("mer")
BundleArg = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle directory.")]
DataFormat = Annotated[str, typer.Option("--data-format", help="Format of the data, or auto.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]
Split = Annotated[str, typer.Option("--split", help="Which split of the data.")]
Runtime = Annotated[str | None, typer.Option("--runtime", help="Backend; see `mer list`.")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="[cpu|cuda|cuda:N]",
        callback=lambda value: _known_device(value),
        help="Where it runs; never falls back.",
    ),
]
OnDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="[cpu|cuda|cuda:N]",
        callback=lambda value: value and _known_device(value),
        help="What runs there alone; default all devices.",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of one inference call.")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Items per call; default as planned, else 16.")]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar=f"[{'|'.join(RULES)}]",
        callback=lambda value: _known_precision(value),
        help="One that was exported, or bf16 or int8, which OpenVINO makes of fp32; default fp32, with --goal any.",
    ),
]
InPrecision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar=f"[{'|'.join(RULES)}]",
        callback=lambda value: _known_precision(value),
        help="What computes in it alone, exported or made by a runtime; default all.",
    ),
]
GoalOpt = Annotated[
    str | None,
    typer.Option("--goal", help="latency, throughput or budget=5ms: run as mer tune found best; options restrict it."),
]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one value of the config.")]
Outside = Annotated[
    list[Path] | None,
    typer.Option("--outside", metavar="DIR", help="Paths that the files name may lead there too; repeatable."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Read the data, print what would be done, and stop.")]
StrictFeatures = Annotated[
    bool, typer.Option("--strict-features", help="Features unlike those of training are an error (exit code 2).")
]
Overflow = Annotated[
    Literal["error", "window", "truncate"], typer.Option("--overflow", help="What to do with items that are too long.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Emotions = Annotated[
    Path | None,
    typer.Option("--emotions", help="Word vectors of the emotions to score, seen in training or not (eea of mtee)."),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run TorchScript, .pt2 and engines of the bundle unchecked, whoever made them.")
]
Data = Annotated[Path, typer.Option("--data", help="Data set: a directory or file.")]
ComparedData = Annotated[Path, typer.Option("--data", help="Data set to compare on.")]
DataOpt = Annotated[Path | None, typer.Option("--data", help="Data set: a directory or file.")]
SplitOfData = Annotated[str | None, typer.Option("--split", help="Which split of --data; default test.")]
FormatOfData = Annotated[str | None, typer.Option("--data-format", help="Format of the data; default auto.")]
Formats = Annotated[list[str] | None, typer.Option("--format", help="Repeat for several; see `mer list`.")]
Precisions = Annotated[list[str] | None, typer.Option("--precision", help="fp32, fp16, bf16 or int8.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many items.")]
Atol = Annotated[
    list[str] | None,
    typer.Option("--atol", metavar="VALUE", help="Tolerance, such as 1e-4, int8:0.2 or log_prob:1e-4."),
]
Rtol = Annotated[list[str] | None, typer.Option("--rtol", metavar="VALUE", help="Its relative part.")]
CudaGraph = Annotated[bool, typer.Option("--cuda-graph", help="On a GPU: capture each shape as a CUDA graph.")]


def _log_to_stderr(verbose: int) -> int:
    """Shows the project's own log records, each with the milliseconds since the start."""
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms  %(levelname)s  %(message)s"))
        log.handlers = [handler]
        log.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
        log.info("mer %s, Python %s, %s", __version__, platform.python_version(), sys.executable)
    return verbose


Verbose = Annotated[
    int,
    typer.Option(
        *("--verbose", "-v"),
        help="Log what is done; twice for every detail.",
        metavar="",
        count=True,
        show_default=False,
        callback=_log_to_stderr,
    ),
]
"""Its callback does all the work: a command only has to list it."""
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def _known_precision(value: str | None) -> str | None:
    if value is not None and value not in RULES:
        raise typer.BadParameter(f"{value!r} is not one of {list(RULES)}")
    return value


def _known_device(value: str) -> str:
    if not re.fullmatch(DEVICES, value):
        raise typer.BadParameter(f"{value!r} is none of cpu, cuda, cuda:1")
    return value


def refuse_existing(path: Path, force: bool) -> None:
    """Raises UsageError where a file is there that `--force` does not replace."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists: pass --force to replace it")


def refuse_without(owner: str, given: bool, options: Mapping[str, object]) -> None:
    """Raises UsageError for an option that is said (not None) and that nothing reads where `owner` is not given."""
    for name, value in options.items():
        if value is not None and not given:
            raise UsageError(f"{name} is of {owner}, which is not there: leave {name} out, or pass {owner} too")


@contextmanager
def drawing(page: Path) -> Iterator[None]:
    """Writes a page inside the block; where what draws it is not installed, says so: results do not depend on it."""
    try:
        yield
    except NotAvailableError as error:
        typer.echo(f"{page} is not written: {error}", err=True)


def say_unless(quiet: bool) -> Callable[[str], None]:
    """Progress: a function that writes a line to standard error, or nothing."""
    return (lambda line: None) if quiet else (lambda line: typer.echo(line, err=True))


def emit(value: Any, as_json: bool, render: Callable[[], Iterable[str]], err: bool = False) -> None:
    """A result on standard output (or, with `err`, on standard error): as JSON, or as the lines of `render`."""
    for line in [json_text(value)] if as_json else render():
        typer.echo(line, err=err)


def emit_plan(command: str, plan: dict[str, Any], as_json: bool) -> None:
    """What a command would do, for `--dry-run`."""
    said = {name: value for name, value in plan.items() if value not in (None, {}, [])}
    emit({"command": command, **plan}, as_json, lambda: [f"{command}:", *outline(said, "  ")])
