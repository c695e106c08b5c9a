"""What the world does to a run: killed at any moment, disk full, no rights, a million utterances, requests of anybody.

    python3 -m benchmarks.faults --out benchmarks/results [--part kill] [--count 20]

Every part says what was tried and what survived; `docs/reliability.md` keeps the counts. Writes `faults-<part>.json`
and `.md`. Commands are processes of their own, forked from one that has imported everything and run nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import output
from benchmarks.endurance import long_file, opened
from benchmarks.fault_world import FORMATS, LENGTHS, Row, Running, World, place_in, require
from benchmarks.served_faults import faults, soak
from benchmarks.side_by_side import beside
from benchmarks.small_disks import forbidden, full
from mer_export.bundle import JOURNAL, MANIFEST, STAGING, Bundle
from mer_export.errors import BundleError, NotAvailableError
from mer_export.markdown import table

LEFT = (STAGING, JOURNAL)
SCRATCH = (".tmp", ".parts")
CACHE = "compiler"


@dataclass(frozen=True)
class Work:
    """A command that is killed, what it writes, and whether that is whole."""

    words: str
    result: str
    whole: Callable[[Path, Path], bool]


def _sound(path: Path, _finished: Path) -> bool:
    """A bundle that is there and intact, or not there yet."""
    try:
        Bundle.open(path).verify()
    except BundleError:
        return not (path / MANIFEST).exists() and not (path / JOURNAL).exists()
    return True


def _encoder(path: Path, finished: Path) -> bool:
    """Intact with all of its variants, or not there yet."""
    there = (path / MANIFEST).exists()
    return _sound(path, finished) and (not there or bool(Bundle.open(path).manifest.variants))


def _same(path: Path, finished: Path) -> bool:
    """Not there yet, or all there."""
    return not path.exists() or path.read_bytes() == finished.read_bytes()


KILLED: dict[str, Work] = {
    "train": Work(
        "train cmerc --preset sample/demo --set epochs=20 --data {data} --out {new}/run --quiet", "run", _sound
    ),
    **{
        f"export {name}": Work(f"export {{bundle}} --format {name} --seq-len {LENGTHS} --force", "bundle", _sound)
        for name in FORMATS
    },
    "infer": Work("infer {bundle} {data} --out {new}/p.jsonl --force --quiet", "p.jsonl", _same),
    "tune": Work("tune {bundle} --batch 1 --quiet", "bundle", _sound),
    "features": Work(
        "features {clips}/clips.csv --encoder audio={sound} --out {new}/f.parquet --force --quiet", "f.parquet", _same
    ),
    "encoder": Work("encoder {network} --out {new}/encoder --length 16 --force --quiet", "encoder", _encoder),
    "convert": Work("data convert {data} --out {new}/d.parquet --force", "d.parquet", _same),
}


@dataclass(frozen=True)
class _Cold:
    """Nothing that an earlier run compiled is there: every run takes as long as the first."""

    place: Path

    def __call__(self) -> None:
        shutil.rmtree(self.place / CACHE, ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.place / CACHE)


def killed(world: World, count: int, names: Sequence[str] = tuple(KILLED), seed: int = 0) -> list[Row]:
    """SIGKILL at a random moment of each command, again and again over what the last one left; then it runs through."""
    return [_kill(world, name, KILLED[name], count, random.Random(f"{seed} {name}")) for name in names]


def _kill(world: World, name: str, work: Work, count: int, draw: random.Random) -> Row:
    row = Row(f"SIGKILL during {name}")
    with place_in(world) as place, place_in(world) as finished:
        begun = time.monotonic()
        code, said = Running(world.words(work.words, finished), _Cold(finished)).wait()
        if code == NotAvailableError.exit_code:
            return Row(row.fault, notes={said: 0})
        require(code, said)
        seconds = time.monotonic() - begun
        for _ in range(5 * count):
            landed = Running(world.words(work.words, place), _Cold(place)).kill_after(draw.uniform(0, seconds))
            if landed:
                whole = work.whole(place / work.result, finished / work.result)
                row.add(whole, "whole or not there" if whole else "damaged")
            elif name == "train":
                # It goes on where it was killed, and so ends at some time.
                shutil.rmtree(place / work.result)
            if row.tried == count:
                break
        code, said = Running(world.words(work.words, place), _Cold(place)).wait()
        left = [str(p.relative_to(place)) for p in place.rglob("*") if _left(p.relative_to(place))]
        sound = code == 0 and work.whole(place / work.result, finished / work.result) and not left
        row.add(sound, "the next run ends well and leaves nothing" if sound else f"the next run: {code} {said} {left}")
    output.say(f"{row.fault}: {row.survived} of {row.tried}")
    return row


def _left(name: Path) -> bool:
    return (name.name in LEFT or name.suffix in SCRATCH) and name.parts[0] != CACHE


PARTS: dict[str, tuple[int, Callable[[World, int], list[Row]]]] = {
    "kill": (20, killed),
    "full": (4, full),
    "forbidden": (1, lambda world, _: forbidden(world)),
    "opened": (500, opened),
    "long": (1_000_000, long_file),
    "serve": (10_000, faults),
    "soak": (300_000, soak),
    "beside": (3, beside),
}
"""How often, unless `--count` says it: kills of a command, sizes of disk, openings, utterances, malformed requests,
requests of a long life, times that all commands write a served bundle."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="repeat for several; default: all")
    parser.add_argument("--count", type=int, help="how often; default: as docs/reliability.md says")
    chosen = parser.parse_args(arguments)
    line = output.command("faults", arguments)
    output.end_well(lambda: run(line, chosen.out, chosen.part or list(PARTS), chosen.count))


def run(command: str, out: Path, parts: Sequence[str], count: int | None) -> None:
    """Runs parts one after the other and writes each."""
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder))
        for part in parts:
            usual, work = PARTS[part]
            rows = work(world, count or usual)
            found = {"command": command, "rows": [asdict(row) for row in rows]}
            output.write(out, f"faults-{part}", found, markdown(command, part, rows))


def markdown(command: str, part: str, found: Sequence[Row]) -> str:
    """The page of one part."""
    cells = [(r.fault, r.tried, r.survived, ", ".join(f"{n}: {c}" for n, c in r.notes.items())) for r in found]
    rows = table(("fault", "tried", "survived", "what happened"), cells)
    return "\n".join([f"# Faults: {part}", "", f"`{command}`", "", *rows, ""])


if __name__ == "__main__":
    main()
