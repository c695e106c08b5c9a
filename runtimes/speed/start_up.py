"""One way to run in a process of its own: what importing, loading and the first answer cost, and how much memory.

Run by `mer_export.launcher`, `main` takes a JSON request and prints a JSON `ColdStart`. Inside the process of the
benchmark itself these numbers would be those of everything loaded before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mer_export.bundle import Bundle, Strict
from mer_export.errors import MerError
from mer_export.launcher import module_command
from mer_export.machine import peak_mib
from runtimes.backends.way import Way


class ColdStart(Strict):
    """Seconds and MiB of a fresh process. `start_s` is the interpreter with the imports that every runtime needs,
    `load_s` importing the runtime, checking checksums and loading the model; `peak_mib` is the largest resident size
    up to the first answer."""

    name: str
    start_s: float
    load_s: float
    first_call_ms: float
    peak_mib: float


def cold_start(bundle: Path, way: Way, timeout: float = 300, trust: bool = False) -> ColdStart | str:
    """Measures a way to run in a fresh process; gives the reason as a sentence where that fails."""
    request = {
        "bundle": str(bundle.resolve()),
        "trust": trust,
        "way": way.model_dump(mode="json"),
        "spawned": time.time(),
    }
    command = module_command("runtimes.speed.start_up", json.dumps(request))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"the first answer took more than {timeout:g} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return f"a fresh process failed: {last[0]}"
    return ColdStart.model_validate_json(done.stdout.strip().splitlines()[-1])


def measure(request: dict[str, Any]) -> ColdStart:
    """Loads what `request` names and runs it once on an item of the bucket's length."""
    waited = time.time() - request["spawned"]
    start = time.perf_counter()
    way = Way.model_validate(request["way"])
    with way.open(Bundle.open(request["bundle"], request["trust"])) as session:
        loaded = time.perf_counter()
        session.warm_up()
        ended = time.perf_counter()
    return ColdStart(
        name=way.name,
        start_s=round(waited, 4),
        load_s=round(loaded - start, 4),
        first_call_ms=round(1000 * (ended - loaded), 3),
        peak_mib=round(peak_mib(), 1),
    )


def main() -> None:
    """Answers the request on the command line."""
    try:
        print(measure(json.loads(sys.argv[1])).model_dump_json())
    except MerError as error:
        sys.exit(str(error))
