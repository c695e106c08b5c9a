"""Answers in blocks by processes and by actors of a cluster, some of which die, as `mer infer` gives them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Mer
from small_scale import ANYBODY, BLOCK, Place, command, make_place, manifest, run, same, written

from mer_export.bundle import Bundle
from mer_export.errors import UsageError
from mer_export.launcher import module_command
from runtimes.pipeline import How
from runtimes.predict.machine_profile import Goal, Limits, choose
from runtimes.scale.blocks import Answered, Asked
from runtimes.scale.cluster import ClusterCrew, room
from runtimes.scale.command import room_of
from runtimes.scale.ledger import Ledger
from runtimes.speed.tune import run_tune


@pytest.fixture(scope="module")
def place(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(exported, tmp_path_factory.mktemp("scale"))


# Processes


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(status.parent.name))
    return found


def started(place: Place, out: Path, *words: object) -> subprocess.Popen[str]:
    asked = command("infer", place.bundle, place.lines, "-o", out, "--shards", 2, "--block", BLOCK, *words)
    return subprocess.Popen(module_command("cli", *asked), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any]) -> Any:
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in a minute")


def test_a_killed_process_costs_its_block_and_a_killed_run_goes_on(place: Place, tmp_path: Path) -> None:
    out, journal = tmp_path / "out", tmp_path / "out" / "done.jsonl"
    with started(place, out) as running:
        try:
            victims = wait_for(lambda: len(found := children(running.pid)) == 2 and found)
            os.kill(victims[0], signal.SIGKILL)
            wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2)
            left = children(running.pid)
        finally:
            running.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
    done = {f.name: f.stat().st_mtime_ns for f in (out / "answers").glob("*.parquet")}
    again = started(place, out, "--json")
    said, problem = again.communicate()
    assert again.returncode == 0, problem
    found = json.loads(said)
    assert found["done_before"] >= 2
    assert found["units"] == len(place.answers)
    assert all((out / "answers" / n).stat().st_mtime_ns == t for n, t in list(done.items())[:2])
    assert same(written(out), place.answers)


# The command line


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-o", "{new}.jsonl", "--shards", "2"], 2, "must be a directory"),
        (["-o", "{new}", "--block", "2"], 2, "--block 2 cuts what --shards"),
        (["{lines}", "-o", "{new}.jsonl"], 2, "2 inputs are answered in blocks"),
        (["-o", "{new}", "--shards", "2", "--data-format", "parquet"], 2, "leave --data-format parquet out"),
        (["{folder}", "-o", "{new}", "--shards", "2"], 2, "mer data convert"),
        (["-o", "{new}", "--shards", "1", "--runtime", "none"], 2, "no runtime 'none'"),
        (["-o", "{folder}", "--shards", "2"], 2, "holds notes.csv"),
    ],
)
def test_what_blocks_cannot_do_is_refused(
    mer: Mer, place: Place, tmp_path: Path, words: Sequence[str], code: int, said: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    own = [w.format(new=tmp_path / "new", lines=place.lines, folder=folder) for w in words]
    found = mer("infer", place.bundle, place.lines, *own, "--quiet")
    assert found[0] == code
    assert said in found[2]
    assert len(found[2].splitlines()) == 1


def test_a_dry_run_says_what_is_in_how_many_blocks_and_writes_nothing(mer: Mer, place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, _ = mer(
        "infer", place.bundle, place.lines, "-o", out, "--shards", "2", "--block", BLOCK, "--dry-run", "--json"
    )
    found = json.loads(said)
    assert code == 0
    assert found["blocks"] > 1
    assert found["bytes"] == place.lines.stat().st_size
    assert not out.exists()


def test_a_cluster_without_ray_says_what_to_install(
    mer: Mer, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    found = mer("infer", place.bundle, place.lines, "-o", tmp_path / "out", "--cluster", "local")
    assert found[0] == 5
    assert "mer-export[scale]" in found[2]


# A cluster


class Asking:
    """In place of Ray: notes what is asked for an actor."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def remote(self, **settings: Any) -> Any:
        self.settings = settings
        return lambda kind: self

    def put(self, what: Any) -> Any:
        return what


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda", 1)])
def test_an_actor_asks_for_the_cores_and_the_gpu_that_it_uses(place: Place, device: str, gpus: int) -> None:
    how, ray = How(device=device, threads=3), Asking()
    needs = room_of(Bundle.open(place.bundle), how)
    ClusterCrew(ray, Asked(place.bundle, how, {}), 0, *needs)
    assert {n: ray.settings[n] for n in ("num_cpus", "num_gpus")} == {"num_cpus": 3, "num_gpus": gpus}
    nodes = {"CPU": 16.0, "GPU": 2.0}
    assert room(nodes, *needs) == (2 if gpus else 5)
    assert room({"CPU": 16.0}, *needs) == (0 if gpus else 5)


def test_a_goal_holds_in_blocks_and_says_what_an_actor_needs(place: Place, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(place.bundle, tmp_path / "bundle"))
    with pytest.raises(UsageError, match="run mer tune"):
        run(replace(place, bundle=bundle.root), tmp_path / "out", goal="throughput")
    profile = run_tune(bundle, batches=(1, 4), precisions=("fp32",))
    profile.save(bundle)
    way = choose(profile, Goal("throughput"), Limits(ANYBODY)).way
    assert room_of(bundle, How(ANYBODY, goal="throughput")) == (way.workers * (way.options.threads or 1), 0)
    found = run(replace(place, bundle=bundle.root), tmp_path / "out", threads=None, goal="throughput")
    assert (found["runtime"], found["precision"]) == (ANYBODY, way.precision)
    assert same(written(tmp_path / "out"), place.answers)


def test_a_node_that_dies_costs_its_blocks_and_the_answers_are_those_of_infer(
    mer: Mer, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra [scale] is not installed")
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray takes another address of the machine for loopback where it thinks it is a cluster's.
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    lost = cluster.add_node(**node)
    out, kept = tmp_path / "out", Ledger.keep

    def keep(ledger: Ledger, answered: Answered) -> None:
        kept(ledger, answered)
        if len(ledger.done) == 2:
            cluster.remove_node(lost, allow_graceful=False)

    monkeypatch.setattr(Ledger, "keep", keep)
    try:
        asked = command("infer", place.bundle, place.lines, "-o", out, "--block", BLOCK, "--json")
        code, said, problem = mer(*asked, "--cluster", cluster.address)
    finally:
        cluster.shutdown()
    assert code == 0, problem
    assert json.loads(said)["units"] == len(place.answers)
    assert manifest(out)["complete"]
    assert same(written(out), place.answers)
