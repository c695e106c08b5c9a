"""What every suite does around its measurements: its command line, progress, files, how it ends.

    python3 -m benchmarks.output DIR

adds the limits of this processor to those results in DIR that were measured on it and do not say them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mer_export import machine
from mer_export.bundle import write_atomic
from mer_export.errors import MerError

PLACE = re.compile(r"^Machine: (?P<cpu>.*), \d+ cores, \d+ GiB", re.MULTILINE)
LIMITS = "limits of a thread, GFLOP/s"


def command(suite: str, arguments: Sequence[str] | None) -> str:
    """The command that makes the results, for their heading."""
    return " ".join([f"python3 -m benchmarks.{suite}", *(sys.argv[1:] if arguments is None else arguments)])


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def write(out: Path, stem: str, found: dict[str, Any], text: str) -> Path:
    """Writes `<stem>.json` and `<stem>.md`; returns the latter."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / f"{stem}.json", json.dumps(found, indent=1).encode())
    write_atomic(out / f"{stem}.md", text.encode())
    say(f"wrote {out / stem}.json and .md")
    return out / f"{stem}.md"


def end_well(work: Callable[[], object]) -> None:
    """Runs a suite; an error that was meant for a person becomes one line and its exit code."""
    try:
        work()
    except MerError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


@cache
def limits() -> dict[str, float]:
    """GFLOP/s of a large product on one thread by precision, as OpenVINO computes it, timed once in a run.

    Beside a ratio they say what a processor can gain: some multiply slower in bf16 than in fp32.
    """
    from runtimes.speed.products import products

    say("limits of this processor")
    return products()


def here() -> dict[str, Any]:
    """The machine that a suite runs on, with the limits of its processor."""
    return machine.describe() | {"limits": limits()}


def earlier(path: Path, part: str) -> dict[str, Any]:
    """The `part` of an earlier result that a run adds to; nothing where it is of another processor."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    alike: bool = found["machine"]["cpu"] == machine.cpu_model()
    return found[part] if alike else {}


def where(machine: dict[str, Any], threads: int | None = None) -> str:
    """The machine in one line; `threads` of each call where there is one number for all."""
    each = f"threads per call: {threads}; " if threads else ""
    return (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"{limits_text(machine)}{each}load average {machine['load_average']}. "
        f"Versions: {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}, Python {machine['python']}."
    )


def limits_text(machine: dict[str, Any]) -> str:
    """What one thread multiplies at, where that was timed."""
    rates = ", ".join(f"{precision} {rate:.0f}" for precision, rate in machine.get("limits", {}).items())
    return f"{LIMITS}: {rates}; " if rates else ""


def add_limits(folder: Path) -> list[str]:
    """Adds the limits of this processor to results of it that do not say them; returns their names."""
    added, cpu = [], machine.cpu_model()
    for page in sorted(folder.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        said = PLACE.search(text)
        if said is None or said["cpu"] != cpu or LIMITS in text:
            continue
        found = page.with_suffix(".json")
        write_atomic(
            found, json.dumps(json.loads(found.read_text()) | {"limits_timed_later": limits()}, indent=1).encode()
        )
        later = limits_text({"limits": limits()}).replace(LIMITS, f"{LIMITS} (timed later)", 1)
        write_atomic(page, f"{text[: said.end()]}; {later.removesuffix('; ')}{text[said.end() :]}".encode())
        added.append(page.stem)
    return added


if __name__ == "__main__":
    say(f"added to: {', '.join(add_limits(Path(sys.argv[1]))) or 'nothing'}")
