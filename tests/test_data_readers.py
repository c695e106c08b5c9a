"""Every reader gives the same samples, and says in one sentence what is wrong with a file."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mer_export import registry
from mer_export.data.bundle_data import overridden
from mer_export.data.dialogues import Dialogue, Utterance
from mer_export.data.formats.cmerc.difficulty import read_difficulty, write_difficulty
from mer_export.data.formats.format import known_formats
from mer_export.data.open import OpenData, open_corpus, stream_samples
from mer_export.data.spec import DataSpec
from mer_export.data.synthetic import synthesise
from mer_export.errors import InputError, UsageError

SMALL = {"text_dim": 8, "audio_dim": 8, "vision_dim": 8}


def _rewrite(path: Path, change) -> None:
    content = list(pickle.loads(path.read_bytes()))
    change(content)
    path.write_bytes(pickle.dumps(tuple(content), protocol=2))


@pytest.fixture
def meld(tmp_path):
    synthesise("cmerc", "meld", tmp_path, dialogues=10, seed=3, **SMALL)
    return tmp_path


@pytest.fixture
def iemocap(tmp_path):
    synthesise("cmerc", "iemocap", tmp_path, dialogues=6, seed=3, **SMALL)
    return tmp_path


def test_a_name_that_no_file_of_answers_can_hold_is_refused(tmp_path):
    lines, folder = tmp_path / "d.jsonl", tmp_path / "wav"
    lines.write_text(json.dumps({"dialogue": "d", "utterances": [{"id": "\ud83d", "text": [1.0]}]}))
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.wav")).touch()
    for path, name in ((lines, r"'\\ud83d'"), (folder, r"'caf\\udce9\.wav'")):
        with pytest.raises(InputError, match=f"the name {name} cannot be written as UTF-8: rename it") as caught:
            open_corpus(path)
        assert str(caught.value).encode()


# --- the authors' pickles


def test_the_authors_pickles_become_dialogues_in_file_order(iemocap):
    corpus = open_corpus(iemocap)
    features = pickle.loads((iemocap / "data" / "IEMOCAP_features.pkl").read_bytes())
    roberta = pickle.loads((iemocap / "data" / "iemocap_features_roberta.pkl").read_bytes())
    assert [s.id for s in corpus.splits["train"]] == features[7]
    assert [s.id for s in corpus.splits["test"]] == features[8]
    sample = corpus.splits["test"][0]
    np.testing.assert_array_equal(sample.inputs["text"], np.asarray([r[sample.id] for r in roberta[2:6]]))
    np.testing.assert_array_equal(sample.inputs["audio"], np.asarray(features[4][sample.id]))
    np.testing.assert_array_equal(sample.inputs["vision"], np.asarray(features[5][sample.id]))
    assert sample.inputs["speaker"].tolist() == [0 if s == "M" else 1 for s in features[1][sample.id]]
    assert sample.labels is not None
    assert sample.labels.tolist() == features[2][sample.id]
    assert sample.units[0] == f"{sample.id}/0"


def test_splits_that_are_sets_come_sorted(iemocap):
    path = iemocap / "data" / "IEMOCAP_features.pkl"
    _rewrite(path, lambda c: c.__setitem__(7, set(c[7])))
    ids = [s.id for s in open_corpus(iemocap).splits["train"]]
    assert ids == sorted(ids)


def test_classes_are_matched_by_name_with_the_model(meld):
    own = open_corpus(meld)
    turned = open_corpus(meld, labels=own.info["labels"][::-1])
    for a, b in zip(own, turned, strict=True):
        assert a.labels is not None
        assert b.labels is not None
        assert (a.labels + b.labels == 6).all()
    with pytest.raises(InputError, match="the model knows"):
        open_corpus(meld, labels=["neutral", "joy"])


def test_a_missing_roberta_file_is_named(meld):
    (meld / "data" / "meld_features_roberta.pkl").unlink()
    with pytest.raises(InputError, match=r"meld_features_roberta\.pkl is missing"):
        open_corpus(meld)


def test_a_dialogue_with_rows_missing_is_named(meld):
    _rewrite(meld / "data" / "MELD_features_raw1.pkl", lambda c: c[4][0].pop())
    with pytest.raises(InputError, match=r"dialogue 0 has .* labels but .* rows of audio"):
        open_corpus(meld)


def test_a_label_outside_the_classes_is_named(meld):
    _rewrite(meld / "data" / "MELD_features_raw1.pkl", lambda c: c[2][0].__setitem__(0, 7))
    with pytest.raises(InputError, match=r"classes 0\.\.6"):
        open_corpus(meld)


def test_two_data_sets_in_one_directory_need_a_choice(meld):
    synthesise("cmerc", "iemocap", meld, dialogues=4, **SMALL)
    with pytest.raises(UsageError, match=r"data\.dataset=iemocap"):
        open_corpus(meld)
    assert open_corpus(meld, DataSpec(dataset="meld")).info["dataset"] == "meld"


def test_unknown_paths_and_formats_are_usage_errors(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_corpus(tmp_path / "absent")
    with pytest.raises(InputError, match="is in no known format"):
        open_corpus(tmp_path)
    with pytest.raises(UsageError, match="no data format 'xml'"):
        open_corpus(tmp_path, DataSpec(format="xml"))


# --- difficulties


@pytest.mark.parametrize("keys", [["b", "a"], [12, 3]])
def test_difficulties_are_written_in_the_published_format(tmp_path, keys):
    values = dict(zip(map(str, keys), [0.25, 0.5], strict=True))
    write_difficulty(tmp_path / "d.pkl", values)
    content = (tmp_path / "d.pkl").read_bytes()
    assert content[:2] == b"\x80\x04"
    assert pickle.loads(content) == dict(zip(keys, [0.25, 0.5], strict=True))
    write_difficulty(tmp_path / "d.json", values)
    for name in ("d.pkl", "d.json"):
        assert list(read_difficulty(tmp_path / name).items()) == list(values.items())


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": "x"}, {"a": float("nan")}, {"a": True}, {"a": 10**400}])
def test_other_pickles_are_no_difficulty_file(tmp_path, content):
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="not a difficulty file"):
        read_difficulty(tmp_path / "d.pkl")


@pytest.mark.parametrize("knows", [2, 3, 9])
def test_as_many_speakers_are_told_apart_as_the_model_knows(tmp_path: Path, knows: int) -> None:
    """Whatever is done to the section on its way: with no model all of them are, and what the data say holds."""
    cast = ["Ann", "Bob", "Cid", "Dan"]
    lines = {"dialogue": "d", "utterances": [{"speaker": who, "audio": [1.0]} for who in cast]}
    (tmp_path / "a.jsonl").write_text(json.dumps(lines))
    (tmp_path / "said.jsonl").write_text(json.dumps({"speakers": 2}) + "\n" + json.dumps(lines))
    system = registry.get("cmerc")
    spec = DataSpec().for_model(system.contract(system.parse({"speakers": knows})))
    shared = [min(i, knows - 1) for i in range(len(cast))]
    for section, name, expected in (
        (DataSpec(), "a", [0, 1, 2, 3]),
        (spec, "a", shared),
        (overridden(spec.over({"unit": "dialogue"}, "data"), ["data.format=jsonl"]), "a", shared),
        (spec, "said", [0, 1, 1, 1]),
    ):
        (sample,) = open_corpus(tmp_path / f"{name}.jsonl", section)
        assert sample.inputs["speaker"].tolist() == expected


# --- JSON lines


def _line(name: str, **change) -> dict:
    utterance = {"speaker": "Ann", "label": "joy", "text": [[1, 2], [3, 4]], "audio": [5]}
    return {"dialogue": name, "split": "test", "utterances": [utterance, {**utterance, "speaker": "Bob"} | change]}


def test_json_lines_give_dialogues_one_at_a_time(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(v) for v in [{"labels": ["sad", "joy"]}, _line("a"), _line("b", label=None)]))
    corpus = open_corpus(path)
    first, second = corpus.splits["test"]
    assert first.inputs["text"].tolist() == [[[1, 2], [1, 2]], [[3, 4], [3, 4]]]
    assert first.inputs["audio"].shape == (2, 1)
    assert first.inputs["speaker"].tolist() == [0, 1]
    assert first.labels is not None
    assert second.labels is not None
    assert (first.labels.tolist(), second.labels.tolist()) == ([1, 1], [1, -1])
    with path.open("a") as stream:
        stream.write("\n{broken")
    lazy = stream_samples(path)
    assert [next(lazy).id, next(lazy).id] == ["a", "b"]
    with pytest.raises(InputError, match="line 4 is not JSON"):
        next(lazy)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"utterances": []}, "'dialogue' is missing"),
        ({"dialogue": "a", "utterances": []}, "no utterances"),
        (_line("a", audio=None), "audio for some utterances only"),
        (_line("a", text=[[1, 2]]), r"line 2: .* text of shapes"),
        (_line("a", label="bored"), "'bored' is none of the classes"),
        (_line("a", label=1.5), "1.5 is none of the classes"),
        ([], "is a list, not a dialogue"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"labels": ["joy"]}) + "\n" + json.dumps(line))
    with pytest.raises(InputError, match=message):
        list(stream_samples(path))


def test_classes_that_are_written_as_fractions_keep_their_numbers(tmp_path):
    path = tmp_path / "d.jsonl"
    lines = [{"dialogue": str(n), "utterances": [{"label": float(n), "audio": [1]}]} for n in range(12)]
    path.write_text("\n".join(map(json.dumps, lines)))
    corpus = open_corpus(path)
    assert corpus.info["labels"] == [str(n) for n in range(12)]
    assert [int(s.labels[0]) for s in corpus] == list(range(12))


def test_a_dialogue_is_looked_through_as_often_however_many_utterances_it_has():
    class Looked(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    def times(count: int) -> int:
        said = Looked(
            [Utterance(f"u{i}", "Ann", sentence="s", features={"audio": (np.ones((1, 2)),)}) for i in range(count)]
        )
        one = [Dialogue("d", "all", said, "here")]
        source = SimpleNamespace(spec=DataSpec(unit="utterance"), splits=(), info={}, dialogues=lambda split=None: one)
        corpus = OpenData(source, "here", "jsonl").corpus()
        assert len(corpus.info["people"]) == len(corpus.info["sentences"]) == count
        return said.times

    assert times(2) == times(20)


def test_labels_with_underscores_are_names_and_large_numbers_are_not_as_many_classes(tmp_path):
    def line(name: str | int) -> str:
        return json.dumps({"dialogue": str(name), "utterances": [{"label": name, "audio": [1]}]})

    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(line, ("10_19", "20_29"))))
    assert open_corpus(path).info["labels"] == ["10_19", "20_29"]
    path.write_text(line(1_700_000_000))
    with pytest.raises(InputError, match=r"numbers up to 1700000000, which would be as many classes: name the column"):
        open_corpus(path)


def test_a_model_trained_on_pickles_reads_a_single_file_too(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(_line("a")))
    assert next(stream_samples(path, DataSpec(format="cmerc"), labels=["joy"])).id == "a"


def test_every_format_can_be_loaded_and_an_unknown_split_is_a_usage_error(meld):
    for known in known_formats().values():
        assert {"detect", "files", "source" if known.open else "read"} <= set(dir(known.load()))
    with pytest.raises(UsageError, match=r"there are \['train', 'test'\]"):
        list(stream_samples(meld, split="dev"))
