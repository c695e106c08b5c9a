"""The suite of faults in short: what is killed, cannot write or goes on for long leaves whole files, and nothing else.

`python3 -m benchmarks.faults` does the long one; docs/reliability.md keeps its counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import endurance, faults, side_by_side, small_disks
from benchmarks.fault_world import Row, World
from mer_export.bundle.files import replacing, replacing_folder

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux's /proc")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Small data and a bundle; read only."""
    return World.make(tmp_path_factory.mktemp("world"))


def survived(rows: list[Row]) -> None:
    assert all(row.survived == row.tried > 0 for row in rows), rows


@pytest.mark.parametrize("name", ["train", "export onnx", "infer", "convert", "features"])
def test_what_was_killed_is_whole_or_not_there_and_the_next_run_leaves_nothing(world: World, name: str) -> None:
    survived(faults.killed(world, 1, [name]))


FULL = ("synth", "convert", "byte-pairs", "import", "train", "export torchscript", "infer csv", "features", "iemocap")
FORBIDDEN = ("synth", "convert", "import", "export torchscript", "infer parquet", "encoder of a signal")


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_said_with_the_file(world: World, name: str) -> None:
    survived(small_disks.full(world, 1, [name]))


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_folder_without_permission_is_said_with_the_file(world: World, name: str) -> None:
    survived(small_disks.forbidden(world, [name]))


def test_a_longer_file_takes_no_more_memory(world: World) -> None:
    (row,) = endurance.long_file(world, 8000)
    survived([row])
    assert row.notes["MiB more than a hundredth of them took"] < 40


def test_a_predictor_that_is_opened_and_asked_again_and_again_keeps_nothing(world: World) -> None:
    survived(endurance.opened(world, 20))


def test_commands_side_by_side_on_a_served_bundle_lose_nothing_and_every_request_is_answered(world: World) -> None:
    """They end well or are refused by name; the server opens anew what they wrote."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    survived(side_by_side.beside(world, 1))


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


def test_the_working_directory_and_what_a_link_leads_to_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to("own")
    monkeypatch.chdir(tmp_path / "own")
    for out, content in ((Path(), "first"), (tmp_path / "link", "second")):
        with replacing_folder(out) as fresh:
            (fresh / "file").write_text(content)
        assert (tmp_path / "own" / "file").read_text() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "own"]


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def write(words: str, fails: bool = False) -> None:
        with replacing_folder(out) as fresh:
            (fresh / words).write_text(words)
            assert not (out / words).exists()
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("nothing", fails=True)
    assert not list(out.parent.iterdir())
    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("half", fails=True)
    (out.parent / ".out.tmp" / "left by a killed one").mkdir(parents=True)
    assert [p.name for p in out.iterdir()] == ["old"]
    write("new")
    assert [p.name for p in out.parent.rglob("*")] == ["out", "new"]


def test_a_suite_writes_what_it_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("a fault")
    row.add(True, "whole")
    row.add(False, "torn")
    monkeypatch.setattr(faults.World, "make", lambda root: root)
    monkeypatch.setitem(faults.PARTS, "kill", (20, lambda _, count: [row] * count))
    faults.main(["--out", str(tmp_path), "--part", "kill", "--count", "2"])
    assert json.loads((tmp_path / "faults-kill.json").read_text())["rows"][1]["tried"] == 2
    assert "| a fault | 2 | 1 | whole: 1, torn: 1 |" in (tmp_path / "faults-kill.md").read_text()
