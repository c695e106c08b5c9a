"""A bundle among other people's models: its card, the way to a hub and back by the real client, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Mer
from damage import cut_short
from stand_in_hub import Hub, hub

import runtimes.hub
from mer_export.bundle import LOCK, Bundle, seal
from mer_export.evaluation import EVALUATION, Evaluation, dump_evaluations, read_evaluations
from mer_export.metrics.measure import class_tables
from mer_export.task import Task
from runtimes.pages.card import CARD, card, write_card

huggingface_hub = pytest.importorskip("huggingface_hub")
SMALL = Path(__file__).parent / "data" / "bundles" / "cmerc"
REPO = "somebody/small"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A trained bundle with results, in a directory of its own."""
    import numpy as np

    opened = Bundle.open(shutil.copytree(SMALL, tmp_path / "small"))
    task: Task = opened.manifest.task
    labels = np.arange(12) % len(task.labels)
    tables = class_tables(task, labels, np.eye(len(task.labels), dtype=np.float32)[np.roll(labels, 1)])
    measured = {"accuracy": 40.0, "weighted_f1": 33.333, "f1/joy": 20.0}
    with opened.commit() as change:
        change.write(
            EVALUATION,
            dump_evaluations([Evaluation(split="test", semantics="single", metrics=measured, classes=tables)]),
        )
        change.manifest.provenance |= {"licence": "cc-by-4.0: as the corpus", "data": {"format": "table"}}
    return opened


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub() as (address, found):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield found


def test_the_card_is_read_by_the_hubs_own_parser_and_says_what_the_bundle_knows(bundle: Bundle) -> None:
    parsed = huggingface_hub.ModelCard(write_card(bundle, ["somebody/corpus"], "small"))
    data = parsed.data
    assert (data.license, data.library_name, data.datasets) == ("cc-by-4.0", "mer-export", ["somebody/corpus"])
    assert data.model_name == "small"
    assert {"emotion-recognition", "cmerc"} <= {*data.tags}
    found = [(r.dataset_split, r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results]
    assert found == [("test", "accuracy", "accuracy", 40.0), ("test", "f1", "weighted F1", 33.33)]
    for said in (
        "## Intended use",
        "not for decisions about a person",
        "## Parity",
        "Same answers as PyTorch",
        "| joy |",
        "as the corpus",
    ):
        assert said in parsed.text


def test_the_same_bundle_has_the_same_card_and_lists_it(bundle: Bundle) -> None:
    text = write_card(bundle)
    assert (bundle.root / CARD).read_text() == text == write_card(Bundle.open(bundle.root)) == card(bundle)
    again = Bundle.open(bundle.root)
    assert CARD in again.manifest.files
    assert again.verify() == len(again.manifest.files)


def test_a_licence_that_no_hub_knows_keeps_its_words(bundle: Bundle) -> None:
    with bundle.commit() as change:
        change.manifest.provenance["licence"] = "Release form of the owner, research only"
    data = huggingface_hub.ModelCard(card(bundle)).data
    assert (data.license, data.license_name) == ("other", "release-form-of-the-owner-research-only")


def test_evaluations_come_back_as_they_were_written(bundle: Bundle) -> None:
    (one,) = read_evaluations(bundle)
    assert (one.split, one.semantics, one.metrics["accuracy"], one.classes[0].name) == (
        "test",
        "single",
        40.0,
        "labels",
    )
    with bundle.commit() as change:
        change.write(EVALUATION, json.dumps({"test": {"single": {"accuracy": 1.0}}}))
    assert read_evaluations(bundle) == [Evaluation(split="test", semantics="single", metrics={"accuracy": 1.0})]


def test_what_was_pushed_is_pulled_bit_for_bit_and_nothing_else(
    held: Hub, bundle: Bundle, mer: Mer, tmp_path: Path
) -> None:
    held.repos[REPO] = {"old.bin": b"of the model before"}
    (bundle.root / "notes.txt").write_text("mine")
    assert mer("push", bundle.root, REPO)[0] == 0
    assert set(held.repos[REPO]) == {"bundle.json", *bundle.manifest.files}
    code, out, err = mer("pull", REPO, tmp_path / "back", "--json", "-q")
    assert code == 0, err
    assert json.loads(out)["files"] == len(bundle.manifest.files)
    for name in ("bundle.json", *bundle.manifest.files):
        assert (tmp_path / "back" / name).read_bytes() == (bundle.root / name).read_bytes()
    assert {p.name for p in (tmp_path / "back").iterdir()} - {LOCK} == {n.split("/")[0] for n in held.repos[REPO]}
    assert mer("pull", REPO, tmp_path / "back")[0] == 2
    assert mer("pull", REPO, tmp_path / "back", "--force", "-q")[0] == 0


def served(held: Hub, bundle: Bundle) -> dict[str, bytes]:
    held.repos[REPO] = {n: (bundle.root / n).read_bytes() for n in ("bundle.json", *bundle.manifest.files)}
    return held.repos[REPO]


def listing(files: dict[str, bytes], name: str, content: bytes) -> None:
    """Adds a file to a repository, and to its manifest as if whoever made it had."""
    import hashlib

    manifest = json.loads(files["bundle.json"])
    manifest.pop("checksum")
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files |= {"bundle.json": seal(manifest), name: content}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../escaped.txt", "points outside the bundle"),
        ("/tmp/escaped.txt", "points outside the bundle"),
        ("weights.pkl", "is a pickle by its name"),
        ("train/state.bin", "is a pickle by its name"),
    ],
)
def test_a_path_that_leads_out_and_a_pickle_are_refused_before_a_file_is_fetched(
    held: Hub, bundle: Bundle, mer: Mer, tmp_path: Path, name: str, said: str
) -> None:
    listing(served(held, bundle), name, b"x")
    code, _, err = mer("pull", REPO, tmp_path / "in" / "back", "-q")
    assert (code, said in err, err.count("\n")) == (6, True, 1), err
    assert not [a for a in held.asked if "/resolve/" in a and not a.endswith("bundle.json")]
    assert [p.name for p in (tmp_path / "in").iterdir()] == []
    assert not (tmp_path / "escaped.txt").exists()


def test_a_file_that_is_not_what_the_bundle_says_leaves_what_was_there(
    held: Hub, bundle: Bundle, mer: Mer, tmp_path: Path
) -> None:
    files = served(held, bundle)
    files["model.safetensors"] = b"\0" * len(files["model.safetensors"])
    code, _, err = mer("pull", REPO, bundle.root, "--force", "-q")
    assert (code, "model.safetensors does not match its checksum" in err) == (6, True), err
    assert Bundle.open(bundle.root).verify() == len(bundle.manifest.files)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_a_folder_that_is_no_bundle_and_one_that_somebody_writes_are_not_replaced(
    held: Hub, bundle: Bundle, mer: Mer, tmp_path: Path
) -> None:
    served(held, bundle)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("kept")
    code, _, err = mer("pull", REPO, tmp_path / "mine", "--force", "-q")
    assert (code, "is not a bundle: choose another --out" in err) == (2, True), err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with bundle.lock():
        code, _, err = mer("pull", REPO, bundle.root, "--force", "-q")
    assert (code, "is being written by process" in err) == (6, True), err
    assert Bundle.open(bundle.root).verify() == len(bundle.manifest.files)


def test_a_change_that_was_cut_short_is_not_pushed_and_one_that_lands_meanwhile_is_pushed_whole(
    held: Hub, bundle: Bundle, mer: Mer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_short(Bundle.open(bundle.root), 1) as change:
        change.write("reports/a.json", "new")
        change.write("reports/b.json", "new")
    code, _, err = mer("push", bundle.root, REPO)
    assert (code, f"a change was cut short: run mer card {bundle.root}" in err) == (6, True), err
    assert REPO not in held.repos
    original = runtimes.hub._hub

    @contextmanager
    def slow(repo: str) -> Iterator[object]:
        """Before the hub is there, somebody else has written."""
        with original(repo) as api:
            with Bundle.open(bundle.root).commit() as change:
                change.write("reports/c.json", "newer")
            yield api

    with monkeypatch.context() as patch:
        patch.setattr(runtimes.hub, "_hub", slow)
        assert mer("push", bundle.root, REPO)[0] == 0
    code, _, err = mer("pull", REPO, tmp_path / "back", "-q")
    assert code == 0, err
    assert (tmp_path / "back" / "reports" / "c.json").read_text() == "newer"


def test_what_the_hub_cannot_give_is_said_in_one_sentence(
    held: Hub, bundle: Bundle, mer: Mer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.repos[REPO] = {"README.md": b"a model of another kind"}
    cases = {REPO: (6, "is not a bundle"), "no/body": (2, "has no no/body"), "a b": (2, "is no name of a repository")}
    for repo, (code, said) in cases.items():
        found, _, err = mer("pull", repo, tmp_path / "back", "-q")
        assert (found, said in err, err.count("\n")) == (code, True, 1), err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for words in (("pull", REPO, tmp_path / "back", "-q"), ("push", bundle.root, REPO)):
        found, _, err = mer(*words)
        assert (found, "cannot be reached from here" in err, err.count("\n")) == (5, True, 1), err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, err = mer("push", bundle.root, REPO)
    assert (code, "pip install 'mer-export[hub]'" in err) == (5, True), err
