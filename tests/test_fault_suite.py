"""The suite of faults in short: what is killed, cannot write or goes on for long leaves whole files, and nothing else.

`python3 -m benchmarks.faults` does the long one; docs/reliability.md keeps its counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import endurance, faults, small_disks
from benchmarks.fault_world import LENGTHS, Row, Running, World, place_in
from mer_export.bundle import STAGING, Bundle
from mer_export.bundle.files import replacing

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux's /proc")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Small data and a bundle; read only."""
    return World.make(tmp_path_factory.mktemp("world"))


def survived(rows: list[Row]) -> None:
    assert all(row.survived == row.tried > 0 for row in rows), rows


@pytest.mark.parametrize("name", ["train", "export onnx", "infer", "convert"])
def test_what_was_killed_is_whole_or_not_there_and_the_next_run_leaves_nothing(world: World, name: str) -> None:
    survived(faults.killed(world, 1, [name]))


@pytest.mark.parametrize(
    "name", ["synth", "convert", "byte-pairs", "import", "train", "export torchscript", "infer csv"]
)
def test_a_full_disk_is_said_with_the_file(world: World, name: str) -> None:
    survived(small_disks.full(world, 1, [name]))


@pytest.mark.parametrize("name", ["synth", "convert", "import", "export torchscript", "infer parquet"])
def test_a_folder_without_permission_is_said_with_the_file(world: World, name: str) -> None:
    survived(small_disks.forbidden(world, [name]))


def test_a_longer_file_takes_no_more_memory(world: World) -> None:
    (row,) = endurance.long_file(world, 8000)
    survived([row])
    assert row.notes["MiB more than a hundredth of them took"] < 40


def test_a_predictor_that_is_opened_and_asked_again_and_again_keeps_nothing(world: World) -> None:
    survived(endurance.opened(world, 20))


# Side by side

BESIDE = {
    "onnx": f"export {{bundle}} --format onnx --seq-len {LENGTHS} --batch 1",
    "torchscript": f"export {{bundle}} --format torchscript --seq-len {LENGTHS}",
    "tune": "tune {bundle} --batch 1",
    "parity": "parity {bundle} --data {data} --limit 3",
    "bench": "bench {bundle} --batch 1 --rounds 3",
}
REFUSALS = ("is being written by process", "was replaced since this bundle was opened", "is being written by another")


def results(bundle: Bundle) -> set[str]:
    """What of `BESIDE` the bundle holds the results of."""
    found = {v.format for v in bundle.manifest.variants if v.format != "onnx" or v.batch == 1}
    found |= {name for name in ("parity", "bench") if f"reports/{name}.json" in bundle.manifest.files}
    return found | ({"tune"} if any(n.startswith("profiles/") for n in bundle.manifest.files) else set())


def test_commands_side_by_side_on_one_bundle_end_well_or_are_refused_and_lose_nothing(world: World) -> None:
    with place_in(world) as place:
        running = {name: Running(world.words(words, place)) for name, words in BESIDE.items()}
        ended = {name: process.wait() for name, process in running.items()}
        well = {name for name, (code, _) in ended.items() if code == 0}
        refused = {name: said for name, (code, said) in ended.items() if code == 6}
        assert well | refused.keys() == BESIDE.keys(), ended
        assert well
        assert all(any(r in said for r in REFUSALS) for said in refused.values()), refused
        bundle = Bundle.open(place / "bundle")
        bundle.verify()
        assert not bundle.pending
        assert not (bundle.root / STAGING).exists()
        assert well <= results(bundle)
        for name in refused:
            assert Running(world.words(BESIDE[name], place)).wait()[0] == 0
        assert results(Bundle.open(bundle.root)) == BESIDE.keys()


# Left behind


def test_a_writer_removes_what_a_dead_one_left_and_not_what_a_living_one_holds(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    child = os.fork()
    if not child:
        with replacing(out) as mine:
            mine.write_text("half")
            os._exit(0)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.jsonl.")
    (tmp_path / ".other.jsonl.1.tmp").touch()
    with replacing(out) as first:
        assert not left.exists()
        first.write_text("first")
        with replacing(out) as second:
            assert first.exists()
            second.write_text("second")
        assert out.read_text() == "second"
    assert out.read_text() == "first"
    assert {p.name for p in tmp_path.iterdir()} == {"out.jsonl", ".other.jsonl.1.tmp"}


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    diary.write_text("dear diary")
    (tmp_path / ".out.1.tmp").symlink_to(diary)
    os.link(diary, tmp_path / ".out.2.tmp")
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("new")
    assert diary.read_text() == "dear diary"


def test_a_suite_writes_what_it_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("a fault")
    row.add(True, "whole")
    row.add(False, "torn")
    monkeypatch.setattr(faults.World, "make", lambda root: root)
    monkeypatch.setitem(faults.PARTS, "kill", (20, lambda _, count: [row] * count))
    faults.main(["--out", str(tmp_path), "--part", "kill", "--count", "2"])
    assert json.loads((tmp_path / "faults-kill.json").read_text())["rows"][1]["tried"] == 2
    assert "| a fault | 2 | 1 | whole: 1, torn: 1 |" in (tmp_path / "faults-kill.md").read_text()
