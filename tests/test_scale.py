"""Answers in blocks: by workers of other engines, of parts of files, in runs that go on, as `mer infer` gives them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from small_bundle import make_samples
from small_scale import ANYBODY, BLOCK_BYTES, DIALOGUES, Place, make_place, manifest, run, same, written

from mer_export.bundle import Bundle
from mer_export.data.formats.parquet.writer import write_parquet
from mer_export.data.parts import Part, cut, open_part
from mer_export.data.samples import Corpus
from mer_export.data.spec import DataSpec
from mer_export.errors import UsageError
from mer_export.untrusted.stored import Stored, stored_files
from runtimes import BatchWorker
from runtimes.pipeline import How
from runtimes.scale.blocks import Answered, Asked, Block, BlockWorker, Died, Event, Record
from runtimes.scale.desk import Desk, checksum
from runtimes.scale.ledger import Ledger, Request


@pytest.fixture(scope="module")
def place(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(exported, tmp_path_factory.mktemp("scale"))


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
    # A column that lacks some speakers elsewhere is one of floats.
    floats = worker(arrays | {"speaker": arrays["speaker"].astype(np.float64)})
    assert all(np.array_equal(floats[n], found[n]) for n in found if n.startswith("p/"))
    frame = worker(table.replace_schema_metadata().to_pandas())
    assert list(frame["label"]) == list(found["label"])
    wide = table.set_column(3, "text", table["text"].cast(pyarrow.large_list(pyarrow.float32())))
    assert same(worker(wide.replace_schema_metadata()), place.answers)


def test_a_row_for_each_dialogue_is_answered_as_its_line_is(place: Place, worker: BatchWorker) -> None:
    lines = [json.loads(line) for line in place.lines.read_text().splitlines()[1:]]
    assert same(worker(pyarrow.Table.from_pylist(lines)), place.answers)


def test_no_worker_judges_features_of_a_whole_data_set() -> None:
    with pytest.raises(UsageError, match="strict_features judges a whole data set"):
        BatchWorker("bundle", strict_features=True)


def test_part_of_a_dialogue_is_refused_where_the_model_reads_dialogues(place: Place, worker: BatchWorker) -> None:
    table = parquet.read_table(place.rows)
    with pytest.raises(UsageError, match="not together and in order"):
        worker(table.slice(2))
    with pytest.raises(UsageError, match="without dialogue"):
        worker({"utterance": ["a"]})


def test_vectors_of_another_width_are_refused_and_not_cut_anew(worker: BatchWorker) -> None:
    own = {"dialogue": ["d"], "utterance": ["u"]}
    with pytest.raises(UsageError, match="columns: audio holds vectors of several widths in one cell"):
        worker(own | {"audio": [[[1.0], [1.0, 2.0]]]})
    # As many numbers as one vector of the model.
    for halves in ([[1.0] * 4, [2.0] * 4], np.ones((2, 4), np.float32)):
        with pytest.raises(UsageError, match="columns: audio has vectors of width 4, they are read in width 8"):
            worker(own | {"audio": [halves]})


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
    worker = BlockWorker(Asked(place.bundle, How(ANYBODY, threads=1), {p: DataSpec() for p in ("jsonl", "parquet")}))
    worker.begin()
    found = [worker.answer(Block(n, p)) for n, p in enumerate(cut(file, BLOCK_BYTES))]
    tables = [parquet.read_table(pyarrow.BufferReader(a.content)) for a in found if isinstance(a, Answered)]
    assert len(tables) == len(found)
    assert same(pyarrow.concat_tables(tables), place.answers)


# A run that goes on


@cache
def desk(bundle: Path, how: How) -> Desk:
    """What workers of all runs here answer with, opened once."""
    return Desk(bundle, how)


@dataclass
class Scripted:
    """A crew of one that dies at the blocks it is told, as often as it is told."""

    asked: Asked
    deaths: dict[int, int]
    had: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.worker = BlockWorker(self.asked)
        self.worker.desk = desk(self.asked.bundle, self.asked.how)
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


def test_a_split_is_that_of_all_files_of_which_some_have_none_of_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.scale.command.ProcessCrew.hired", scripted({}, []))
    other = tmp_path / "test.parquet"
    write_parquet(
        Corpus({"test": make_samples(2)}, "small", {"labels": ["neutral", "joy", "anger"], "speakers": 3}), other
    )
    assert run(place, tmp_path / "out", place.rows, other, split="test")["samples"] == 2
    with pytest.raises(UsageError, match="no split 'dev' in the data"):
        run(place, tmp_path / "none", place.rows, other, split="dev")
    table = parquet.read_table(place.rows)
    named = table.set_column(table.schema.names.index("split"), "split", [["test"] * len(table)])
    parquet.write_table(named, tmp_path / "stray.parquet")
    with pytest.raises(UsageError, match="has rows of the split 'test', its metadata say"):
        run(place, tmp_path / "stray", tmp_path / "stray.parquet", split="test")


def test_blocks_of_a_file_that_changes_meanwhile_are_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.scale.command.ProcessCrew.hired", scripted({}, []))
    lines, keep = tmp_path / "own.jsonl", Ledger.keep
    lines.write_bytes(place.lines.read_bytes())

    def changing(ledger: Ledger, answered: Answered) -> None:
        keep(ledger, answered)
        os.utime(lines, (1, 1))

    monkeypatch.setattr(Ledger, "keep", changing)
    with pytest.raises(UsageError, match=r"block 1, .*own.jsonl has changed since the run began"):
        run(place, tmp_path / "out", lines)
    assert [n for n, b in enumerate(manifest(tmp_path / "out")["blocks"]) if "result" in b] == [0]


def test_blocks_whose_recordings_may_be_readable_now_are_done_again(tmp_path: Path) -> None:
    file = Stored("clips.jsonl", 4, "")
    parts = [Part(file, "jsonl", n, n + 1, 1) for n in range(4)]

    def opened(*outside: str) -> AbstractContextManager[Ledger]:
        return Ledger.open(tmp_path, Request([file], "", {}, outside), lambda: iter(parts), False)

    with opened() as ledger:
        # Of two utterances each: all were read, one was not, none was, and both are silent.
        for block, (unreadable, nothing) in zip(ledger.blocks, ((0, 0), (1, 1), (2, 2), (0, 2)), strict=True):
            content, counts = bytes([block.number]), {"units": 2, "nothing_to_read": nothing}
            record = Record(hashlib.sha256(content).hexdigest(), 1, counts, "", "", (), unreadable)
            ledger.keep(Answered(block, content, record))
        ledger.finish({})
    with opened() as ledger:
        assert set(ledger.done) == {0, 1, 3}
    with opened("/clips") as ledger:
        assert set(ledger.done) == {0, 3}


@pytest.mark.parametrize(
    ("name", "content"), [("answers/mine.csv", "a,b"), ("done.jsonl", "{}"), ("manifest.json", '{"name": "a page"}')]
)
def test_files_of_others_under_the_names_of_a_run_stay(place: Place, tmp_path: Path, name: str, content: str) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text(content)
    with pytest.raises(UsageError, match="name a new directory"):
        run(place, tmp_path / "out")
    assert mine.read_text() == content


def test_what_changes_answers_changes_the_checksum_and_a_report_does_not(exported: Bundle, tmp_path: Path) -> None:
    from small_bundle import part_of, reweigh

    bundle = part_of(exported, tmp_path / "bundle", ("onnx", 8))
    before = checksum(bundle)
    with bundle.commit() as change:
        change.write("reports/seen.json", "{}")
    assert checksum(Bundle.open(bundle.root)) == before
    reweigh(bundle, 1)
    assert checksum(Bundle.open(bundle.root)) != before
