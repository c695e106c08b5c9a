"""What every suite does around its measurements: its command line, progress, files, how it ends.

    python3 -m benchmarks.output DIR

adds the limits of this processor to those results in DIR that were measured on it and do not say them.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mer_export import machine
from mer_export.bundle import write_atomic
from mer_export.errors import MerError, UsageError

PLACE = re.compile(r"^Machine: (?P<cpu>.*), \d+ cores, \d+ GiB", re.MULTILINE)
LIMITS = "limits of a thread, GFLOP/s"


def command(suite: str, arguments: Sequence[str] | None) -> str:
    """The command that makes the results, for their heading: as it can be typed, but for the machine's own places.

    Of a path from the root its last name stands there alone.
    """
    words = sys.argv[1:] if arguments is None else arguments
    return f"python3 -m benchmarks.{suite} {shlex.join(map(_placeless, words))}".rstrip()


def _placeless(word: str) -> str:
    option, given, value = word.rpartition("=")
    return f"{option}{given}{Path(value).name or value}" if value.startswith("/") else word


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


def earlier(path: Path) -> dict[str, Any]:
    """An earlier result that a run adds to; nothing where it is of another processor."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if found and found["machine"]["cpu"] != machine.cpu_model():
        say(f"{path} is of another processor, {found['machine']['cpu']}: nothing of it stays")
        return {}
    return found


class Entries:
    """A result that grows: an entry for each name, beside those of earlier runs on the same processor.

    All of it is written after each entry, so that a run that ends early leaves what it has. Each entry keeps the
    command that made it.
    """

    def __init__(
        self, out: Path, stem: str, part: str, command: str, page: Callable[[dict[str, Any]], str], **same: Any
    ):
        """Goes on with the file of that name; `part` has its entries, `page` makes its text.

        Raises:
            UsageError: what is the `same` for all of its entries is something else in the file.
        """
        self._out, self._stem, self._part, self._command, self._page, self._same = out, stem, part, command, page, same
        before = earlier(out / f"{stem}.json")
        for name, value in same.items():
            if before and before[name] != value:
                raise UsageError(f"{stem}.json has {name} {before[name]}, not {value}: pass another directory as --out")
        self._found: dict[str, Any] = before.get(part, {})
        self._commands = commands_of(before, self._found)

    def add(self, name: str, entry: Any) -> None:
        """Puts an entry in the place of an earlier one of that name, and writes."""
        self._found[name], self._commands[name] = entry, self._command
        found = {"command": self._command, "commands": self._commands, "machine": here()}
        found |= self._same | {self._part: self._found}
        write(self._out, self._stem, found, self._page(found))


def commands_of(found: Mapping[str, Any], names: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """The command that made each entry of a result; of files that say one for all of them, that one."""
    return dict(found.get("commands") or {name: found["command"] for name in names})


def head(title: str, found: Mapping[str, Any], threads: int | None = None) -> list[str]:
    """How every page begins: its title, the commands that made it, the machine."""
    made_by = dict.fromkeys(found.get("commands", {}).values()) or [found["command"]]
    return [f"# {title}", "", "  \n".join(f"`{c}`" for c in made_by), "", where(found["machine"], threads)]


def spread(found: Mapping[str, float], places: int = 2, strong: bool = False) -> str:
    """Median, `strong` or not, and quartiles over rounds: `2.00 [1.90, 2.10]`."""
    median, q25, q75 = (f"{found[name]:.{places}f}" for name in ("median", "q25", "q75"))
    return f"{'**' * strong}{median}{'**' * strong} [{q25}, {q75}]"


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
