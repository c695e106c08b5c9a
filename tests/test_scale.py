"""Answers in blocks: by processes, by actors of a cluster, by workers of other engines, as `mer infer` gives them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from conftest import Mer
from pyarrow import parquet
from small_bundle import make_samples

from mer_export.bundle import Bundle
from mer_export.data.formats.parquet.writer import write_parquet
from mer_export.data.parts import cut, open_part
from mer_export.data.samples import Corpus
from mer_export.data.spec import DataSpec
from mer_export.errors import UsageError
from mer_export.launcher import module_command
from mer_export.untrusted.stored import stored_files
from runtimes import BatchWorker
from runtimes.predict.machine_profile import Goal, Limits, choose
from runtimes.scale.blocks import Answered, Asked, Block, BlockWorker, Died, Event
from runtimes.scale.cluster import ClusterCrew, room
from runtimes.scale.command import Reading, Spread, infer_in_blocks, room_of
from runtimes.scale.desk import How, checksum
from runtimes.scale.ledger import Ledger
from runtimes.speed.tune import run_tune

DIALOGUES = 40
BLOCK_BYTES = 20_000
BLOCK = str(BLOCK_BYTES / 2**20)
ANYBODY = "onnxruntime"


@dataclass(frozen=True)
class Place:
    """A bundle, the same dialogues in both formats, and what `mer infer` answers."""

    bundle: Path
    lines: Path
    rows: Path
    answers: pyarrow.Table


@pytest.fixture(scope="module")
def place(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("scale")
    samples = make_samples(DIALOGUES)
    lines, rows = root / "dialogues.jsonl", root / "dialogues.parquet"
    with lines.open("w") as stream:
        stream.write(json.dumps({"labels": ["neutral", "joy", "anger"], "speakers": 3}) + "\n")
        for s in samples:
            said = [_utterance(s, k) for k in range(len(s.units))]
            stream.write(json.dumps({"dialogue": s.id, "utterances": said}) + "\n")
    write_parquet(Corpus({"all": samples}, "small", {"labels": ["neutral", "joy", "anger"], "speakers": 3}), rows)
    small = parquet.read_table(rows)
    with parquet.ParquetWriter(rows, small.schema) as writer:
        # Groups of three rows: most dialogues lie in several.
        writer.write_table(small, row_group_size=3)
    out = root / "answers.parquet"
    command = module_command("cli", *_words("infer", exported.root, lines, "-o", out))
    subprocess.run(command, check=True, capture_output=True)
    return Place(exported.root, lines, rows, parquet.read_table(out))


def _words(*words: object) -> list[str]:
    return [*map(str, words), "--runtime", ANYBODY, "--quiet"]


def _utterance(sample: Any, k: int) -> dict[str, Any]:
    vectors = {"text": sample.inputs["text"][:, k], "audio": sample.inputs["audio"][k]}
    vectors["vision"] = sample.inputs["vision"][k]
    own = {n: v.tolist() for n, v in vectors.items()}
    return {"id": sample.units[k], "speaker": int(sample.inputs["speaker"][k]), **own}


def same(found: pyarrow.Table, expected: pyarrow.Table) -> bool:
    """Whether answers are equal: numbers within what another batch may round, all else exactly."""
    assert found.schema == expected.schema
    numbers = [f.name for f in expected.schema if pyarrow.types.is_floating(f.type)]
    exact = found.drop_columns(numbers).equals(expected.drop_columns(numbers))
    return exact and all(np.allclose(found[n], expected[n], rtol=0, atol=1e-6) for n in numbers)


def written(out: Path) -> pyarrow.Table:
    """The answers of a directory, in the order of its blocks."""
    return pyarrow.concat_tables([parquet.read_table(f) for f in sorted((out / "answers").iterdir())])


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


# Other engines


@pytest.fixture(scope="module")
def worker(place: Place) -> Iterator[BatchWorker]:
    worker = pickle.loads(pickle.dumps(BatchWorker(place.bundle, runtime=ANYBODY)))
    yield worker
    worker.close()


def test_a_worker_goes_by_pickle_and_answers_columns_as_infer_does(place: Place, worker: BatchWorker) -> None:
    table = parquet.read_table(place.rows)
    assert same(worker(table), place.answers)
    assert same(pickle.loads(pickle.dumps(worker))(table), place.answers)


def test_columns_of_other_engines_are_the_same_columns(place: Place, worker: BatchWorker) -> None:
    table = parquet.read_table(place.rows, columns=["dialogue", "utterance", "speaker", "text", "audio", "vision"])
    arrays = {n: table[n].to_numpy() for n in table.schema.names}
    found = worker(arrays)
    assert list(found) == place.answers.schema.names
    assert list(found["label"]) == place.answers["label"].to_pylist()
    frame = worker(table.replace_schema_metadata().to_pandas())
    assert list(frame["label"]) == list(found["label"])
    wide = table.set_column(3, "text", table["text"].cast(pyarrow.large_list(pyarrow.float32())))
    assert same(worker(wide.replace_schema_metadata()), place.answers)


def test_a_row_for_each_dialogue_is_answered_as_its_line_is(place: Place, worker: BatchWorker) -> None:
    lines = [json.loads(line) for line in place.lines.read_text().splitlines()[1:]]
    assert same(worker(pyarrow.Table.from_pylist(lines)), place.answers)


def test_part_of_a_dialogue_is_refused_where_the_model_reads_dialogues(place: Place, worker: BatchWorker) -> None:
    table = parquet.read_table(place.rows)
    with pytest.raises(UsageError, match="not together and in order"):
        worker(table.slice(2))
    with pytest.raises(UsageError, match="without dialogue"):
        worker({"utterance": ["a"]})


# Parts of files


@pytest.mark.parametrize("form", ["lines", "rows"])
def test_parts_make_the_whole_and_split_no_dialogue(place: Place, form: str) -> None:
    (file,) = stored_files(str(getattr(place, form)))
    parts = list(cut(file, 5000))
    assert len(parts) > 4
    spec = DataSpec()
    found = [d for p in parts for d in open_part(p, spec).source.dialogues()]
    (whole,) = cut(file, 1 << 30)
    expected = list(open_part(whole, spec).source.dialogues())
    assert [(d.id, [u.id for u in d.utterances]) for d in found] == [
        (d.id, [u.id for u in d.utterances]) for d in expected
    ]
    assert [len(d.utterances) for d in found] == [1 + i % 8 for i in range(DIALOGUES)]


@pytest.mark.parametrize("address", ["file://{path}", "memory://data/{name}"])
@pytest.mark.parametrize("form", ["lines", "rows"])
def test_files_at_an_address_are_answered_as_those_of_a_path(place: Place, address: str, form: str) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec reads what pyarrow does not")
    path: Path = getattr(place, form)
    name = address.format(path=path, name=path.name)
    with fsspec.open(f"memory://data/{path.name}", "wb") as stream:
        stream.write(path.read_bytes())
    (file,) = stored_files(name)
    worker = BlockWorker(Asked(How(place.bundle, runtime=ANYBODY), {p: DataSpec() for p in ("jsonl", "parquet")}))
    worker.begin()
    found = [worker.answer(Block(n, p)) for n, p in enumerate(cut(file, BLOCK_BYTES))]
    tables = [parquet.read_table(pyarrow.BufferReader(a.content)) for a in found if isinstance(a, Answered)]
    assert len(tables) == len(found)
    assert same(pyarrow.concat_tables(tables), place.answers)


# A run that goes on


@dataclass
class Scripted:
    """A crew of one that dies at the blocks it is told, as often as it is told."""

    asked: Asked
    deaths: dict[int, int]
    had: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.worker = BlockWorker(self.asked)
        self.worker.begin()
        self.free = 1

    def give(self, block: Block) -> None:
        self.free, self.block = 0, block

    def event(self) -> Event:
        self.free = 1
        self.had.append(self.block.number)
        if self.deaths.get(self.block.number, 0) >= self.had.count(self.block.number):
            return Died(self.block, "its worker was killed by SIGKILL", True)
        return self.worker.answer(self.block)


def scripted(deaths: dict[int, int], crews: list[Scripted]) -> Callable[..., Any]:
    @contextmanager
    def hired(asked: Asked, count: int) -> Iterator[Scripted]:
        crews.append(Scripted(asked, deaths))
        yield crews[-1]

    return hired


def run(place: Place, out: Path, *inputs: Path, force: bool = False, **how: Any) -> dict[str, Any]:
    spread = Spread(shards=1, block=BLOCK_BYTES / 2**20)
    reading = Reading([str(i) for i in inputs or (place.lines,)])
    return infer_in_blocks(How(place.bundle, runtime=ANYBODY, **how), reading, out, spread, force=force)


def test_a_death_costs_its_block_only_and_a_block_that_ends_every_worker_is_named(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crews: list[Scripted] = []
    monkeypatch.setattr("runtimes.scale.command.ProcessCrew.hired", scripted({1: 1, 2: 99}, crews))
    with pytest.raises(UsageError, match=r"1 of \d+ blocks have no answers.*block 2.*tried 3 times: .*SIGKILL"):
        run(place, tmp_path / "out")
    assert crews[0].had.count(1) == 2
    assert crews[0].had.count(2) == 3
    said = manifest(tmp_path / "out")
    assert not said["complete"]
    assert [n for n, b in enumerate(said["blocks"]) if "failed" in b] == [2]
    monkeypatch.setattr("runtimes.scale.command.ProcessCrew.hired", scripted({}, crews))
    found = run(place, tmp_path / "out")
    assert crews[1].had == [2]
    assert found["done_before"] == found["blocks"] - 1
    assert same(written(tmp_path / "out"), place.answers)


def test_a_finished_run_has_nothing_to_do_and_another_one_is_refused_by_name(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crews: list[Scripted] = []
    monkeypatch.setattr("runtimes.scale.command.ProcessCrew.hired", scripted({}, crews))
    out, lines = tmp_path / "out", tmp_path / "own.jsonl"
    lines.write_bytes(place.lines.read_bytes())
    first = run(place, out, lines, place.rows)
    assert run(place, out, lines, place.rows) == first | {"done_before": first["blocks"]}
    assert len(crews) == 1
    said = manifest(out)
    assert said["complete"]
    assert sum(b["result"]["counts"]["units"] for b in said["blocks"]) == 2 * len(place.answers)
    with pytest.raises(UsageError, match="--overflow error"):
        run(place, out, lines, place.rows, overflow="window")
    with pytest.raises(UsageError, match="other inputs"):
        run(place, out, lines)
    damaged = out / said["blocks"][1]["file"]
    damaged.write_bytes(b"another")
    assert run(place, out, lines, place.rows)["done_before"] == first["blocks"] - 1
    lines.write_bytes(place.lines.read_bytes() * 2)
    with pytest.raises(UsageError, match=r"own.jsonl as it was before it changed.*--force"):
        run(place, out, lines, place.rows)
    assert run(place, out, place.rows, force=True)["done_before"] == 0


def test_a_line_that_is_no_dialogue_costs_its_block_and_is_named(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.scale.command.ProcessCrew.hired", scripted({}, []))
    lines = tmp_path / "own.jsonl"
    text = place.lines.read_text().splitlines()
    lines.write_text("\n".join([*text[:-1], '{"dialogue": 1}', ""]))
    with pytest.raises(UsageError, match=r"1 of \d+ blocks.*from byte \d+: line \d+ is not a dialogue"):
        run(place, tmp_path / "out", lines)
    assert len(written(tmp_path / "out")) > len(place.answers) // 2


def test_a_dialogue_that_two_blocks_of_a_file_have_is_refused_and_one_of_two_files_is_not(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crews: list[Scripted] = []
    monkeypatch.setattr("runtimes.scale.command.ProcessCrew.hired", scripted({3: 99}, crews))
    out, lines = tmp_path / "out", tmp_path / "own.jsonl"
    text = place.lines.read_text().splitlines()
    lines.write_text("\n".join([*text, text[1], ""]))
    twice = json.loads(text[1])["dialogue"]
    with pytest.raises(UsageError, match="2 of"):
        run(place, out, lines, place.rows)
    failed = {n: b["failed"] for n, b in enumerate(manifest(out)["blocks"]) if "failed" in b}
    last = max(n for n, b in enumerate(manifest(out)["blocks"]) if b["input"] == str(lines))
    assert failed[last].startswith(f"dialogue {twice!r} is there twice, in another part of {lines} too")
    # What is known of blocks that are done is known to the run that goes on, however it ended.
    with (out / "names.bin").open("ab") as stream:
        stream.write(b"cut short")
    monkeypatch.setattr("runtimes.scale.command.ProcessCrew.hired", scripted({}, crews))
    with pytest.raises(UsageError, match=f"1 of .* blocks .*{twice!r} is there twice"):
        run(place, out, lines, place.rows)
    assert crews[-1].had == [3, last]


def test_what_changes_answers_changes_the_checksum_and_a_report_does_not(exported: Bundle, tmp_path: Path) -> None:
    from small_bundle import part_of, reweigh

    bundle = part_of(exported, tmp_path / "bundle", ("onnx", 8))
    before = checksum(bundle)
    with bundle.commit() as change:
        change.write("reports/seen.json", "{}")
    assert checksum(Bundle.open(bundle.root)) == before
    reweigh(bundle, 1)
    assert checksum(Bundle.open(bundle.root)) != before


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
    command = _words("infer", place.bundle, place.lines, "-o", out, "--shards", 2, "--block", BLOCK, *words)
    return subprocess.Popen(module_command("cli", *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any]) -> Any:
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in a minute")


def test_a_killed_process_costs_its_block_and_a_killed_run_goes_on(place: Place, tmp_path: Path) -> None:
    out, journal = tmp_path / "out", tmp_path / "out" / "done.jsonl"
    running = started(place, out)
    victims = wait_for(lambda: len(found := children(running.pid)) == 2 and found)
    os.kill(victims[0], signal.SIGKILL)
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2)
    # Stopped first, so that it cannot end meanwhile.
    left = children(running.pid)
    running.kill()
    running.communicate()
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
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
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
    how = How(place.bundle, device=device, threads=3)
    ray = Asking()
    ClusterCrew(ray, Asked(how, {}), 0, *room_of(how))
    assert {n: ray.settings[n] for n in ("num_cpus", "num_gpus")} == {"num_cpus": 3, "num_gpus": gpus}
    nodes = {"CPU": 16.0, "GPU": 2.0}
    assert room(nodes, *room_of(how)) == (2 if gpus else 5)
    assert room({"CPU": 16.0}, *room_of(how)) == (0 if gpus else 5)


def test_a_goal_holds_in_blocks_and_says_what_an_actor_needs(place: Place, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(place.bundle, tmp_path / "bundle"))
    with pytest.raises(UsageError, match="run mer tune"):
        run(replace(place, bundle=bundle.root), tmp_path / "out", goal="throughput")
    profile = run_tune(bundle, batches=(1, 4), precisions=("fp32",))
    profile.save(bundle)
    way = choose(profile, Goal("throughput"), Limits(ANYBODY)).way
    how = How(bundle.root, runtime=ANYBODY, threads=None, goal="throughput")
    assert room_of(how) == (way.workers * (way.options.threads or 1), 0)
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
        words = _words("infer", place.bundle, place.lines, "-o", out, "--block", BLOCK, "--json")
        code, said, problem = mer(*words, "--cluster", cluster.address)
    finally:
        cluster.shutdown()
    assert code == 0, problem
    assert json.loads(said)["units"] == len(place.answers)
    assert manifest(out)["complete"]
    assert same(written(out), place.answers)
