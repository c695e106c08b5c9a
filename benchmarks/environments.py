"""Tools that want a virtual environment of their own: installing them, and running them on files in a child process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import output
from mer_export.bundle import write_atomic
from mer_export.errors import NotAvailableError

INSTALL_S = 900
"""Seconds that any one step of an installation may take."""
RUN_S = 1800
"""Seconds that a tool may take for one network."""
SCRIPTS = Path(__file__).parent / "tools"
BROKEN = re.compile(r"The installation of .+ failed|\w*(?:Error|ERROR): .*\S")
"""What pip complains of, ahead of its closing hints; the first is how placeholders of NVIDIA's own index end."""
REQUIRED = "import importlib.metadata as m, json; print(json.dumps(m.requires({!r}) or []))"
VERSION = "import importlib.metadata as m; print(m.version({!r}))"


@dataclass(frozen=True)
class Tool:
    """A package and the program in `benchmarks/tools` that runs it.

    Where it cannot be installed as it asks, it is installed without the packages `without`, which its work on a CPU
    never imports, and with `instead`. Packages `beside` it are not asked for by itself.
    """

    name: str
    package: str
    script: str
    extra: str = ""
    without: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


TOOLS = (
    Tool(
        "Model Navigator (onnx)",
        "triton-model-navigator",
        "navigator.py",
        without=("tensorrt", "nvidia-modelopt", "onnxruntime-gpu"),
        instead=("onnxruntime~=1.20",),
    ),
    Tool("optimum-onnx (O2)", "optimum-onnx", "optimum_onnx.py", extra="[onnxruntime]"),
)
# With numpy 2 its Python backend gets empty tensors.
TRITON = Tool(
    "Triton (pytriton)", "nvidia-pytriton", "onnx_in_triton.py", beside=("numpy==1.26.*", "onnxruntime~=1.20")
)


@dataclass(frozen=True)
class Installed:
    """What came of installing a tool: its version and how that was, or the `problem`."""

    version: str = ""
    how: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Made:
    """What a tool gave back; `feed` are the inputs of its file where they are not those of the file it was given."""

    model: Path
    did: str
    feed: Path | None = None


def install(tool: Tool, folder: Path) -> tuple[Path, Installed]:
    """The interpreter of a tool's environment below `folder`, made on the first call, and what came of it."""
    home = folder / tool.package
    python, notes = home / "bin" / "python", home / "installed.json"
    if notes.exists():
        return python, Installed(**json.loads(notes.read_text()))
    output.say(f"installing {tool.package}")
    try:
        child([sys.executable, "-m", "venv", "--clear", str(home)], INSTALL_S)
        how = _packages(tool, python)
        found = Installed(child([str(python), "-I", "-c", VERSION.format(tool.package)], INSTALL_S).strip(), how)
    except NotAvailableError as error:
        # Not kept: another day the index may answer.
        return python, Installed(problem=f"cannot be installed: {error}")
    write_atomic(notes, json.dumps(asdict(found)).encode())
    return python, found


def run(python: Path, script: Path, given: Path, out: Path, threads: int = 1, limit: float = RUN_S) -> Made:
    """What a tool's program makes of the files in `given`; `out` is where it writes.

    Raises:
        NotAvailableError: the program failed, or was not done within `limit` seconds.
    """
    out.mkdir()
    child([str(python), "-I", str(script), str(given), str(out)], limit, {"OMP_NUM_THREADS": str(threads)})
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    feed = result.get("feed")
    return Made(Path(result["model"]), result["did"], Path(feed) if feed else None)


def only(suite: str, request: dict[str, Any]) -> Any:
    """What a suite prints as JSON that is asked for one piece of work (`--only`), in a process of its own.

    Raises:
        NotAvailableError: the last line of its error.
    """
    command = [sys.executable, "-m", f"benchmarks.{suite}", "--only", json.dumps(request)]
    return json.loads(child(command, None, folder=SCRIPTS.parents[1]).splitlines()[-1])


def _packages(tool: Tool, python: Path) -> str:
    """Installs a tool; returns how."""
    try:
        pip(python, tool.package + tool.extra, *tool.beside)
        return "installed as it asks"
    except NotAvailableError as error:
        if not tool.without:
            raise
        problem = error
    pip(python, "--no-deps", tool.package)
    asked: list[str] = json.loads(child([str(python), "-I", "-c", REQUIRED.format(tool.package)], INSTALL_S))
    named = {r: re.split(r"[^\w-]", r)[0] for r in asked if "extra ==" not in r}
    pip(python, *(r for r, name in named.items() if name not in tool.without), *tool.instead)
    return (
        f"installed without {', '.join(tool.without)} and with {', '.join(tool.instead)} "
        f"(with all that it asks for: {problem})"
    )


def pip(python: Path, *arguments: str) -> None:
    child([str(python), "-m", "pip", "install", "--quiet", *arguments], INSTALL_S, telling=BROKEN)


def child(
    command: list[str],
    limit: float | None,
    environment: dict[str, str] | None = None,
    telling: re.Pattern[str] | None = None,
    folder: Path | None = None,
) -> str:
    """What a command prints, run in `folder`.

    Raises:
        NotAvailableError: the last line of its error, of those that are `telling` if any; or that it was not done
            within `limit` seconds.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
        env=os.environ | (environment or {}),
    )
    try:
        printed, complained = process.communicate(timeout=limit)
    except BaseException as error:
        # With whatever it has started itself.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise NotAvailableError(f"not done within {limit:g} s") from None
        raise
    if process.returncode:
        lines = [line.strip() for line in complained.splitlines() if line.strip()]
        told = [found[0] for line in lines if telling and (found := telling.search(line))]
        raise NotAvailableError((told or lines or [f"exit status {process.returncode}"])[-1])
    return printed
