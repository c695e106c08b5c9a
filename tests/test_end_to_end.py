"""The suites on whole runs: the authors' way reads, pads and computes what `mer` does, and parts are counted once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_bundle import make_samples

from benchmarks import end_to_end, growth, output, start, training
from benchmarks.authors import LOOPS, padded
from benchmarks.forms import MessagePassing
from benchmarks.phases import Clock
from benchmarks.suite import NETWORKS, random_bundle
from mer_export import machine, registry
from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from mer_export.data.formats.parquet.writer import write_parquet
from mer_export.data.open import stream_samples
from mer_export.data.samples import Corpus
from mer_export.data.synthetic import synthesise
from mer_export.errors import BundleError, MerError, UsageError
from mer_export.models.cmerc.graph import Frequency, context_edges
from runtimes.predict.plan import planned_batches
from train.config import load_preset

ROOT = Path(__file__).parent.parent
FEW: dict[str, tuple[str, int, dict[str, Any]]] = {
    "cmerc_meld": ("meld", 6, {}),
    "mtee_mosei": ("mosei_emo", 20, {}),
    "emt_mosi": ("mosi", 6, {}),
    "tab_iemocap": ("iemocap", 20, {"audio_len": 12}),
    "facialmmt_fusion": ("meld", 6, {"audio_len": 4, "vision_len": 3, "no_face": 0, "images": False, "caches": True}),
}
"""Data set, items and settings of each network's files."""
NEEDED = {"mtee_mosei": "h5py", "facialmmt_fusion": "tokenizers"}


@pytest.mark.parametrize("name", FEW)
def test_the_authors_way_reads_and_pads_what_mer_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDED.get(name, "torch"))
    network, (dataset, items, settings) = NETWORKS[name], FEW[name]
    system, recipe = registry.get(network.system), load_preset(network.preset)
    contract = system.contract(network.config)
    synthesise(network.system, dataset, tmp_path, items, **settings)
    samples = list(stream_samples(tmp_path, recipe.data, system.task(network.config).labels, "test"))
    theirs = list(LOOPS[name].read(tmp_path))
    assert len(theirs) == len(samples) > 0
    for item, sample in zip(theirs, samples, strict=True):
        found, names = LOOPS[name].prepare(padded([item], contract)), {*sample.inputs}
        ours = collate([sample], contract.model_copy(update={"inputs": contract.features}))
        for input in names & {*ours}:
            row = found[input][0].numpy()
            real = ours[input][0]
            np.testing.assert_array_equal(row[tuple(slice(n) for n in real.shape)], real, err_msg=input)
        assert names <= {*found} | {"gumbel_noise", "expression_logits"}


def test_messages_over_edge_lists_are_those_of_the_dense_layers() -> None:
    torch.manual_seed(0)
    layers, lengths = Frequency(6, 3), [5, 1, 3]
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).float()
    nodes = torch.randn(3, 3, 5, 6) * mask[:, None, :, None]
    edges = context_edges(mask, torch.zeros(3, 5, dtype=torch.int64), "full")
    dense = layers(nodes, mask, edges)[-1]
    (passed,) = MessagePassing(layers)(nodes, mask, edges)
    inside = mask[:, None, :, None].bool().expand_as(dense)
    torch.testing.assert_close(passed[inside], dense[inside])


def test_a_part_within_another_stops_its_clock() -> None:
    times = iter([2.0, 3.0, 7.0, 8.0, 20.0])
    clock = Clock(0.0, lambda: next(times))
    clock.timed("write", clock.timed("read", lambda: None))()
    clock.leave()
    assert clock.spent == {"start": 2.0 + 12.0, "write": 1.0 + 1.0, "read": 4.0, "compute": 0.0}


def entries(folder: Path, command: str, splits: list[str]) -> output.Entries:
    page: Callable[[Any], str] = lambda found: "\n".join(output.head("Title", found))  # noqa: E731
    return output.Entries(folder, "found", "cases", command, page, splits=splits)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "limits", dict)


def test_a_result_is_added_to_that_of_the_same_processor_alone(tmp_path: Path, here: None) -> None:
    path = tmp_path / "found.json"
    for cpu, expected in ((machine.cpu_model(), {"a": 1, "b": 2}), ("another", {"b": 2})):
        before = {"command": "one", "machine": {"cpu": cpu}, "splits": ["dev"], "cases": {"a": 1}}
        path.write_text(json.dumps(before))
        entries(tmp_path, "two", ["dev"]).add("b", 2)
        assert json.loads(path.read_text())["cases"] == expected


def test_every_entry_of_a_result_says_the_command_that_made_it(tmp_path: Path, here: None) -> None:
    for command, name in (("one", "a"), ("two", "b"), ("three", "a")):
        entries(tmp_path, command, ["dev"]).add(name, command)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["commands"] == {"a": "three", "b": "two"} == found["cases"]
    assert (tmp_path / "found.md").read_text().startswith("# Title\n\n`three`  \n`two`\n\nMachine: ")


def test_entries_under_one_heading_are_of_the_same_splits(tmp_path: Path, here: None) -> None:
    entries(tmp_path, "one", ["dev"]).add("a", 1)
    with pytest.raises(UsageError, match=r"found.json has splits \['dev'\], not \['test'\]: pass another directory"):
        entries(tmp_path, "two", ["test"])


def test_a_command_that_is_kept_can_be_typed_and_names_no_place_of_a_machine() -> None:
    words = ["--out", "results", "--part", "training step", "--environments", "/tmp/own/env", "--clips=/data/clips/"]
    typed = "python3 -m benchmarks.peers --out results --part 'training step' --environments env --clips=clips"
    assert output.command("peers", words) == typed
    assert output.command("peers", []) == "python3 -m benchmarks.peers"


def test_results_of_this_processor_get_its_limits_later_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "limits", lambda: {"fp32": 100.0, "bf16": 50.0})
    for name, cpu in (("own", machine.cpu_model()), ("other", "another")):
        (tmp_path / f"{name}.json").write_text("{}")
        (tmp_path / f"{name}.md").write_text(f"# Title\n\nMachine: {cpu}, 2 cores, 24 GiB; load average 1.\n")
    assert output.add_limits(tmp_path) == ["own"]
    text = (tmp_path / "own.md").read_text()
    assert ", 2 cores, 24 GiB; limits of a thread, GFLOP/s (timed later): fp32 100, bf16 50; load average 1." in text
    assert json.loads((tmp_path / "own.json").read_text()) == {"limits_timed_later": {"fp32": 100.0, "bf16": 50.0}}
    assert output.add_limits(tmp_path) == []


def test_ratios_are_those_of_each_round_and_before_stands_beside_what_it_is_compared_with() -> None:
    taken = {
        end_to_end.AUTHORS: [{"again": 8.0}, {"again": 12.0}],
        "": [{"first": 4.0, "again": 2.0}, {"first": 4.0, "again": 2.0}],
        end_to_end.BEFORE: [{"first": 8.0, "again": 3.0}, {"first": 8.0, "again": 3.0}],
    }
    parts = dict.fromkeys(end_to_end.PARTS, 0.5)
    rounds = {n: [{w: {"seconds": s} | parts for w, s in r.items()} for r in rs] for n, rs in taken.items()}
    rows = end_to_end._rows({"rounds": rounds})
    assert [(r[0], r[1], r[-2].split("**")[1], r[-1].split(" ")[0]) for r in rows] == [
        ("the authors' way, eager PyTorch", "–", "1.00", "–"),
        ("mer infer, as typed", "first", "2.50", "**2.00**"),
        ("mer infer, as typed", "again", "5.00", "**1.50**"),
        ("mer infer, as typed (before)", "first", "1.25", "–"),
        ("mer infer, as typed (before)", "again", "3.33", "–"),
    ]


def test_ways_that_answer_more_or_less_than_another_are_not_compared() -> None:
    taken = {end_to_end.AUTHORS: [{"again": {"units": 7}}], "": [{"again": {"units": 7}}]}
    end_to_end.check_answers("mer infer", taken[""][0]["again"], taken)
    with pytest.raises(MerError, match="mer infer gives 6 answers, another way 7"):
        end_to_end.check_answers("mer infer", {"units": 6}, taken)


def test_what_could_not_be_timed_stands_below_the_table_with_its_reason() -> None:
    parts = dict.fromkeys(end_to_end.PARTS, 0.5)
    case = {
        "answers": 7,
        "megabytes": 1.0,
        "rounds": {end_to_end.AUTHORS: [{"again": {"seconds": 1.0} | parts}]},
        "not_run": {"openvino int8": "it is not installed"},
    }
    found = {"command": "a command", "machine": machine.describe(), "cases": {"cmerc": case}}
    assert "- mer infer, openvino int8: not run: it is not installed" in end_to_end.markdown(found)
    kept = json.loads((ROOT / "benchmarks" / "results" / "training-1thread.json").read_text())
    assert "not run" not in training.markdown(kept)
    kept["recipes"]["cmerc/meld"]["left_out"] = {"a way": "it is forbidden"}
    assert "- cmerc/meld, a way: not run: it is forbidden" in training.markdown(kept)
    found |= {"rows": [], "not_kept": ["emt_mosi int8"]}
    assert "Not run: emt_mosi int8: too large to be kept." in start.markdown(found)


def test_a_run_of_growth_that_answers_too_few_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('one\\n')"

    def one_answer(*words: str) -> list[str]:
        return [sys.executable, "-c", answers, words[words.index("--out") + 1]]

    monkeypatch.setattr(growth, "module_command", one_answer)
    form = growth.Form(lambda folder, bundle, count: folder / "data.jsonl")
    bundle = random_bundle(tmp_path / "bundle", growth.DIALOGUES)
    assert growth.measure(form, bundle, 1)["utterances"] == 1
    with pytest.raises(BundleError, match="answered 1 of 3 utterances"):
        growth.measure(form, bundle, 3)


def test_growth_is_that_of_one_more_utterance() -> None:
    steps = [
        {"utterances": 1000, "megabytes": 1.0, "seconds": 1.0, "mib": 100.0},
        {"utterances": 11000, "megabytes": 11.0, "seconds": 1.5, "mib": 100.0},
    ]
    assert list(growth._rows("lines", steps)) == [
        ("lines", "1000", "1.0", "1.00", "100", "–", "–"),
        ("lines", "11000", "11.0", "1.50", "100", "50.0", "0"),
    ]


def test_files_of_every_kind_hold_as_many_utterances_of_the_same_shapes(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle", growth.DIALOGUES)
    shapes = {}
    for name in set(growth.FORMS) - {"table of transcripts"}:
        folder = tmp_path / name
        folder.mkdir()
        samples = list(stream_samples(growth.FORMS[name].write(folder, bundle, 19)))
        shapes[name] = [{n: a.shape for n, a in s.inputs.items()} for s in samples]
        assert sum(len(s.units) for s in samples) == 19
    assert all(found == shapes["Parquet"] for found in shapes.values())


def test_every_part_of_a_run_of_the_command_is_seen(exported: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    said = {"labels": exported.manifest.task.labels, "speakers": 3}
    write_parquet(Corpus({"test": make_samples()}, "random", said), tmp_path / "data.parquet")
    words = ["infer", exported.root, tmp_path / "data.parquet", "--out", tmp_path / "out.jsonl", "--quiet"]
    timed = [sys.executable, "-P", ROOT / "benchmarks" / "phases.py", str(time.time()), *words]
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(timed, capture_output=True, text=True, env=own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    spent = json.loads(done.stdout.splitlines()[-1])
    assert spent.keys() == {*end_to_end.PARTS}
    assert all(seconds > 0 for seconds in spent.values())


def test_a_case_without_buckets_gets_those_that_a_plan_makes_of_its_data(exported: Bundle, tmp_path: Path) -> None:
    bundle, samples = Bundle.open(shutil.copytree(exported.root, tmp_path / "bundle")), make_samples()
    said = {"labels": bundle.manifest.task.labels, "speakers": 3}
    write_parquet(Corpus({"test": samples}, "random", said), tmp_path / "data.parquet")
    buckets = end_to_end.planned(bundle, tmp_path / "data.parquet", "small")
    assert {*planned_batches(Bundle.open(bundle.root))} == {*buckets}
    assert max(b["utterances"] for b in buckets) == max(len(s.units) for s in samples)
