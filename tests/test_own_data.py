"""Data of one's own: from a bare table to predictions, for every system and whatever modalities there are."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Mer

from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_corpus
from mer_export.data.synthetic import synthesise
from mer_export.data.tokens.byte_pair_training import train_byte_pairs
from mer_export.errors import InputError, UsageError
from runtimes.predict.predictor import Predictor
from train.commented import field_meanings
from train.config import TrainConfig, load_config
from train.own_data import own_config
from train.prepared import prepare_run
from train.recipe import recipes

ROOT = Path(__file__).parent.parent
EMOTIONS = ("anger", "joy", "neutral")
MODALITIES = ("text", "audio", "vision")
COMBINATIONS = [c for n in (1, 2, 3) for c in combinations(MODALITIES, n)]
COLUMNS = {"text": ["t0", "t1", "t2", "t3"], "audio": ["f0", "jitter", "shimmer"], "vision": ["AU01", "AU02"]}
WITHOUT_WORDS = [c for c in COMBINATIONS if "text" not in c]
READS: dict[str, list[tuple[str, ...]]] = {
    **dict.fromkeys(("cmerc", "emt", "mult", "tfr_net", "mtee"), COMBINATIONS),
    "facialmmt": WITHOUT_WORDS,
    "tab": [("text",)],
}
"""What vectors of its own each system takes: facialmmt reads words instead of text vectors, tab has no frames."""
SOME = (("text",), ("audio", "vision"), MODALITIES)
CASES = [
    (system, used)
    for system, choices in READS.items()
    for used in choices
    if used in SOME or system in ("cmerc", "facialmmt", "tab") or "MER_EVERY_NETWORK" in os.environ
]
"""The systems of single utterances leave a modality out in one place, and so do all combinations alike."""


def write_calls(folder: Path, used: tuple[str, ...] = MODALITIES, target: str = "emotion") -> Path:
    """Calls of an agent and a customer in which the emotion shows in every feature."""
    draw = np.random.default_rng(0)
    features = [name for m in used for name in COLUMNS[m]]
    rows = [["call", "turn", "who", target, "part", "words", *features]]
    for split, calls in (("train", 6), ("dev", 3), ("test", 3)):
        for call in range(calls):
            for turn in range(2 + call % 3):
                mood = (call + turn) % 3
                value = EMOTIONS[mood] if target == "emotion" else f"{mood - 1 + 0.25:.2f}"
                shown = [f"{mood + draw.normal(0, 0.3):.3f}" for _ in features]
                who = ("agent", "customer", "agent", "manager")[turn % 4]
                rows.append([f"{split}{call}", str(turn), who, value, split, f"said number {turn}", *shown])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "utterances.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calls with a table.yaml."""
    folder = write_calls(tmp_path_factory.mktemp("own") / "calls")
    columns = {m: {"columns": f"{names[0]}:{names[-1]}"} for m, names in COLUMNS.items()}
    roles = {"dialogue": "call", "order": "turn", "utterance": "turn", "speaker": "who", "label": "emotion"}
    table = {"table": "utterances.csv", **roles, "split": "part", "sentence": "words", **columns}
    (folder / "table.yaml").write_text(yaml.safe_dump(table))
    return folder


def without(used: tuple[str, ...]) -> list[str]:
    """What leaves the other modalities out of the data."""
    return [f"data.{m}=null" for m in MODALITIES if m not in used]


def walk() -> list[list[str]]:
    """The commands of the walk in docs/training.md."""
    page = (ROOT / "docs" / "training.md").read_text()
    section = page.split("\n## Your own data\n")[1].split("\n## ")[0]
    return [shlex.split(line)[1:] for line in section.splitlines() if line.startswith("    mer ")][:4]


def test_a_system_for_utterances_refuses_files_of_whole_dialogues(tmp_path: Path) -> None:
    synthesise("cmerc", "meld", tmp_path, dialogues=6)
    with pytest.raises(UsageError, match="holds whole dialogues in files that emt does not read: train cmerc"):
        own_config("emt", tmp_path)


def test_four_commands_lead_from_a_table_to_predictions(
    mer: Mer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_calls(Path("calls"))
    commands = walk()
    assert [words[0] for words in commands] == ["inspect", "train", "export", "infer"]
    for words in commands:
        target = words[words.index(">") + 1] if ">" in words else None
        if target:
            # The shell opens the file before the command looks at the folder.
            Path(target).touch()
        quick = ["--set", "epochs=2"] if words[0] == "train" else []
        code, out, err = mer(*words[: words.index(">") if target else None], *quick)
        assert code == 0, err
        if target:
            Path(target).write_text(out)
    answers = [json.loads(line) for line in Path(commands[-1][-1]).read_text().splitlines()]
    assert {a["label"] for a in answers} <= set(EMOTIONS)
    assert len(answers) == sum(
        row.split(",")[4] == "test" for row in Path("calls/utterances.csv").read_text().splitlines()
    )


@pytest.mark.parametrize(("system", "used"), CASES, ids=lambda v: v if isinstance(v, str) else "+".join(v))
def test_a_system_trains_on_the_modalities_that_there_are(
    mer: Mer, calls: Path, tmp_path: Path, system: str, used: tuple[str, ...]
) -> None:
    sets = [word for s in (*without(used), "epochs=1", "threads=1") for word in ("--set", s)]
    code, _, err = mer("train", system, "--data", calls, "--out", tmp_path / "run", "--quiet", *sets)
    assert code == 0, err
    bundle = Bundle.open(tmp_path / "run")
    contract = bundle.manifest.contract
    assert contract.modalities == used
    assert all(len(name) > 3 for name in contract.longest)
    assert {n for d in contract.buckets for n in d} == set(contract.sequence_dims)
    with Predictor(bundle, "torch") as predictor:
        # What the model has no input for does not keep it from reading the data.
        samples = bundle_corpus(bundle, calls).split("test")
        answers = list(predictor.predict(samples))
    assert len(answers) == sum(len(s.units) for s in samples)
    assert {a.modalities for a in answers} == {used}
    assert all(np.isfinite(list(a.probabilities.values())).all() for a in answers)


WITH_WORDS = [
    *(("facialmmt", c) for c in COMBINATIONS if "text" in c),
    *((s, c) for s in ("emt", "mult", "tfr_net") for c in (("text",), ("text", "audio"))),
]


@pytest.fixture(scope="module")
def tokenizer(calls: Path) -> Path:
    words = [row.split(",")[5] for row in (calls / "utterances.csv").read_text().splitlines()[1:]]
    train_byte_pairs(words, 300, calls.parent / "tokenizer")
    return calls.parent / "tokenizer"


@pytest.mark.parametrize(("system", "used"), WITH_WORDS, ids=lambda v: v if isinstance(v, str) else "+".join(v))
def test_words_take_the_place_of_text_vectors(
    mer: Mer, calls: Path, tokenizer: Path, tmp_path: Path, system: str, used: tuple[str, ...]
) -> None:
    said = [*without(tuple(m for m in used if m != "text")), f"data.tokenizer={tokenizer}"]
    said += ["protocol.text_encoder=random", "epochs=1", "threads=1"]
    sets = [word for s in said for word in ("--set", s)]
    code, _, err = mer("train", system, "--data", calls, "--out", tmp_path / "run", "--quiet", *sets)
    assert code == 0, err
    bundle = Bundle.open(tmp_path / "run")
    assert bundle.manifest.contract.modalities == used
    assert "input_ids" in {s.name for s in bundle.manifest.contract.inputs}
    with Predictor(bundle, "torch") as predictor:
        assert {a.modalities for a in predictor.predict(bundle_corpus(bundle, calls).split("test"))} == {used}


def test_tab_reads_words_beside_the_sentence_vectors(mer: Mer, calls: Path, tokenizer: Path, tmp_path: Path) -> None:
    said = (f"data.tokenizer={tokenizer}", "protocol.text_encoder=random", "epochs=1", "threads=1")
    sets = [word for s in said for word in ("--set", s)]
    code, _, err = mer("train", "tab", "--data", calls, "--out", tmp_path / "run", "--quiet", *sets)
    assert code == 0, err
    assert Bundle.open(tmp_path / "run").manifest.variant == "text_tab"


@pytest.mark.parametrize("system", sorted(READS))
def test_a_model_of_fewer_modalities_is_exported_and_answers_the_same(
    mer: Mer, calls: Path, tmp_path: Path, system: str
) -> None:
    run, used = tmp_path / "run", READS[system][1 if len(READS[system]) > 1 else 0]
    sets = [word for s in (*without(used), "epochs=1", "threads=1") for word in ("--set", s)]
    assert mer("train", system, "--data", calls, "--out", run, "--quiet", *sets)[0] == 0
    longest = ",".join(f"{d}={n}" for d, n in Bundle.open(run).manifest.contract.buckets[-1].items())
    lengths = ("--seq-len", longest) if longest else ()
    assert mer("export", run, "--format", "onnx", *lengths, "--quiet")[0] == 0
    code, out, err = mer("parity", run, "--data", calls, "--quiet")
    assert code == 0, out + err


def test_the_recipe_says_what_the_data_say(calls: Path) -> None:
    config = own_config("cmerc", calls)
    assert config.model["labels"] == list(EMOTIONS)
    assert (config.model["text_dim"], config.model["audio_dim"], config.model["vision_dim"]) == (4, 3, 2)
    assert (config.model["speakers"], config.data.speakers) == (3, 3)
    assert config.model["buckets"] == [3, 4]
    assert (config.train_splits, config.evaluate_splits) == (("train",), ("dev", "test"))
    assert (config.keep.rule, config.keep.split) == ("best", "dev")


@pytest.mark.parametrize("system", sorted(READS))
def test_what_init_writes_is_the_recipe_that_train_takes(mer: Mer, calls: Path, tmp_path: Path, system: str) -> None:
    sets = without(READS[system][-1])
    code, out, err = mer("init", system, calls, *(w for s in sets for w in ("--set", s)))
    assert code == 0, err
    (tmp_path / "my.yaml").write_text(out)
    assert load_config(tmp_path / "my.yaml") == own_config(system, calls, sets)
    assert out.count("#") > 25


def test_every_field_of_a_recipe_that_has_a_meaning_shows_it(mer: Mer, calls: Path) -> None:
    _, out, _ = mer("init", "emt", calls)
    shown = " ".join(line.strip("# ") for line in out.splitlines())
    kinds = (TrainConfig, registry.get("emt").config, recipes()["emt"].settings)
    meanings = [" ".join(text.split()) for kind in kinds for text in field_meanings(kind).values()]
    assert len(meanings) > 25
    assert [m for m in meanings if m not in shown] == []


def test_the_command_line_goes_before_the_data(calls: Path) -> None:
    config = own_config("emt", calls, ["model.head_width=7", "epochs=3", "keep.rule=last"], seed=5)
    assert (config.model["head_width"], config.epochs, config.keep.rule, config.seed) == (7, 3, "last", 5)


@pytest.mark.parametrize("system", ["emt", "mult", "tfr_net", "mtee"])
def test_scores_make_a_regression(mer: Mer, tmp_path: Path, system: str) -> None:
    data = write_calls(tmp_path / "calls", target="score")
    code, out, _ = mer("inspect", data, "--draft")
    (data / "table.yaml").write_text(out)
    assert "score: score" in out
    code, _, err = mer("train", system, "--data", data, "--out", tmp_path / "run", "--quiet", "--set", "epochs=1")
    assert code == 0, err
    assert Bundle.open(tmp_path / "run").manifest.task.kind == "regression"


def test_several_labels_make_mtee_multilabel_and_no_other_system(tmp_path: Path) -> None:
    lines = [
        {
            "dialogue": f"d{i}",
            "split": "train",
            "utterances": [{"labels": {"joy": i % 2, "fear": 1}, "audio": [i, 1.0]}],
        }
        for i in range(6)
    ]
    path = tmp_path / "d.jsonl"
    header = {"labels": ["joy", "fear"], "unit": "utterance"}
    path.write_text("\n".join(json.dumps(line) for line in (header, *lines)))
    config = own_config("mtee", path)
    assert (config.model["task"], config.model["labels"]) == ("multilabel", ["joy", "fear"])
    assert config.model["modalities"] == ["audio"]
    for system in ("cmerc", "emt", "mult", "tfr_net", "facialmmt"):
        with pytest.raises(UsageError, match="choose mtee"):
            own_config(system, path)


def test_a_recipe_for_data_without_labels_or_with_two_widths_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"dialogue": "a", "utterances": [{"audio": [1, 2]}]}')
    with pytest.raises(UsageError, match="no labels to train on"):
        own_config("emt", path)
    path.write_text(
        '{"dialogue": "a", "utterances": [{"label": "x", "audio": [1, 2]}]}\n'
        '{"dialogue": "b", "utterances": [{"label": "y", "audio": [1, 2, 3]}]}'
    )
    with pytest.raises(InputError, match="audio is 2 wide in a/0 and 3 in b/0"):
        own_config("emt", path)


def test_scores_beyond_every_scale_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"dialogue": "a", "utterances": [{"score": 7, "audio": [1, 2]}]}')
    for system in ("emt", "mtee"):
        with pytest.raises(UsageError, match="scores go from 7 to 7"):
            own_config(system, path)


def test_scores_are_not_trained_on_as_classes(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"dialogue": "a", "utterances": [{"score": 1, "audio": [1, 2]}, {"score": 0, "audio": [2, 1]}]}')
    config = own_config("emt", path, ["model.labels=[anger, joy]"])
    with pytest.raises(UsageError, match="a/0: the data have scores, a classification goes by classes"):
        prepare_run(config, path, draws_weights=True)


def test_splits_of_which_none_is_called_train_have_to_be_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    line = '{{"dialogue": "{0}", "split": "{0}", "utterances": [{{"label": "{0}", "audio": [1]}}]}}'
    path.write_text("\n".join(map(line.format, "ab")))
    with pytest.raises(UsageError, match="none is called train"):
        own_config("emt", path)
    lost = '{"dialogue": "a", "split": "train", "utterances": [{"label": null, "audio": [1]}]}'
    path.write_text(f"{lost}\n{line.format('test')}")
    with pytest.raises(UsageError, match=r"has labels in the splits \['test'\], none is called train"):
        own_config("emt", path)
    path.write_text('{"dialogue": "a", "utterances": [{"label": "x", "audio": [1]}, {"label": "y", "audio": [1]}]}')
    config = own_config("emt", path)
    assert (config.train_splits, config.evaluate_splits, config.keep.rule) == (("all",), (), "last")


def test_a_setting_that_the_format_does_not_read_is_refused_in_training(mer: Mer, calls: Path, tmp_path: Path) -> None:
    code, _, err = mer("train", "emt", "--data", calls, "--out", tmp_path / "run", "--set", "data.dataset=mosi")
    assert (code, "--set data.dataset=mosi: the format dialogue_table does not read it" in err) == (2, True)
    for words in (("crossval", "tab", "--preset", "iemocap_cv"), ("experiment", "sample/mosi")):
        code, _, err = mer(*words, "--data", calls, "--out", tmp_path / "run", "--set", "data.dataset=mosi")
        assert code == 2
        assert re.search(r"--set data.dataset=mosi: the format \w+ does not read it, leave it out", err)
    (tmp_path / "my.yaml").write_text(mer("init", "emt", calls)[1])
    words = ("train", "emt", "--config", tmp_path / "my.yaml", "--data", calls, "--out", tmp_path / "run", "--dry-run")
    assert mer(*words, "--set", "data.modalities=[text]")[0] == 2
    assert mer(*words, "--set", "data.audio=null")[0] == 0
    assert mer(*words, "--set", "data.emotions.vectors=words.json")[0] == 0


def test_dialogues_that_do_not_say_who_speaks_are_refused_by_cmerc(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    said = [{"label": label, "audio": [1.0], "speaker": None} for label in "xy"]
    path.write_text(json.dumps({"dialogue": "a", "utterances": said}))
    with pytest.raises(UsageError, match=r"cmerc reads who speaks.*data\.speaker"):
        own_config("cmerc", path)
    assert own_config("emt", path).model["modalities"] == ["audio"]


def test_word_vectors_of_the_labels_make_emotion_embeddings_of_mtee(mer: Mer, calls: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "words.json"
    vectors.write_text(json.dumps({label: [float(i), 1.0, 0.0] for i, label in enumerate(EMOTIONS)}))
    said = ["model.model=eea", "model.hidden_sizes=[3, 8, 8]", f"data.emotions.vectors={vectors}", "epochs=1"]
    sets = [word for s in said for word in ("--set", s)]
    code, _, err = mer("train", "mtee", "--data", calls, "--out", tmp_path / "run", "--quiet", *sets)
    assert code == 0, err
    assert set(Bundle.open(tmp_path / "run").manifest.contract.shared["emotions"]) == set(EMOTIONS)
