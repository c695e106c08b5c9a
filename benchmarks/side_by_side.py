"""Commands that write one bundle at the same time, and a server that answers from it all the while."""

from __future__ import annotations

from pathlib import Path

from benchmarks import output
from benchmarks.fault_world import LENGTHS, Row, Running, World, place_in
from benchmarks.http_load import Served, load, served
from benchmarks.served_faults import OPTIONS, requests_of, right
from mer_export.bundle import STAGING, Bundle

CLIENTS, PAUSE = 2, 0.02
COMMANDS = {
    "onnx": f"export {{bundle}} --format onnx --seq-len {LENGTHS} --batch 1 --quiet",
    "torchscript": f"export {{bundle}} --format torchscript --seq-len {LENGTHS} --quiet",
    "tune": "tune {bundle} --batch 1 --precision fp32 --quiet",
    "parity": "parity {bundle} --data {data} --limit 3 --quiet",
    "bench": "bench {bundle} --batch 1 --rounds 3 --runtime onnxruntime --quiet",
}
REFUSED = 6
"""Exit code of who finds another writer, and what it then says."""
REFUSALS = ("is being written by process", "was replaced since this bundle was opened", "is being written by another")


def beside(world: World, count: int) -> list[Row]:
    """Every command at once on a bundle that is served, `count` times; who is refused tries again alone."""
    good, expected = requests_of(world)
    commands, requests, reloads = Row("commands on a served bundle"), Row("requests meanwhile"), Row("reloads")
    for _ in range(count):
        with place_in(world) as place, served(place / "bundle", *OPTIONS) as server:
            answers = load(server, good, CLIENTS, during=lambda at=place: _write(world, at, commands), pause=PAUSE)
            for answer in answers:
                requests.add(right(answer, expected), "right" if right(answer, expected) else str(answer.status))
            _reloaded(server, reloads)
            commands.add(*_whole(place / "bundle"))
    for row in (commands, requests, reloads):
        output.say(f"{row.fault}: {row.survived} of {row.tried}, {row.notes}")
    return [commands, requests, reloads]


def _write(world: World, place: Path, row: Row) -> None:
    running = {name: Running(world.words(words, place)) for name, words in COMMANDS.items()}
    ended = {name: process.wait() for name, process in running.items()}
    row.add(any(code == 0 for code, _ in ended.values()), "one of them is first")
    for name, (code, said) in ended.items():
        refused = code == REFUSED and any(r in said for r in REFUSALS)
        row.add(refused or code == 0, "refused by name" if refused else "done" if code == 0 else f"{code}: {said}")
        if refused:
            code, said = Running(world.words(COMMANDS[name], place)).wait()
            row.add(code == 0, "done when run again" if code == 0 else f"{code}: {said}")


def _whole(path: Path) -> tuple[bool, str]:
    bundle = Bundle.open(path)
    bundle.verify()
    lost = COMMANDS.keys() - _results(bundle)
    fine = not lost and not bundle.pending and not (path / STAGING).exists()
    return fine, "the bundle holds all results" if fine else f"lost: {sorted(lost)}"


def _results(bundle: Bundle) -> set[str]:
    """The commands whose results a bundle holds."""
    found = {v.format for v in bundle.manifest.variants if v.format != "onnx" or v.batch == 1}
    found |= {name for name in ("parity", "bench") if f"reports/{name}.json" in bundle.manifest.files}
    return found | ({"tune"} if any(n.startswith("profiles/") for n in bundle.manifest.files) else set())


def _reloaded(server: Served, row: Row) -> None:
    done, failed = server.reloads("done"), server.reloads("failed")
    row.add(done > 0 and failed == 0, f"{done:.0f} done, {failed:.0f} failed")
