"""Encoders inside a bundle: recordings and sentences in, labels out, in a process without PyTorch."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")

from conftest import Mer, Once  # noqa: E402
from damage import cut_short  # noqa: E402
from small_attached import KINDS, WIDTHS, Infer, attached_encoder, attached_model, inferring  # noqa: E402
from small_emt import make_emt  # noqa: E402

from mer_export.bundle import Bundle, FeatureStatistics  # noqa: E402
from mer_export.data.bundle_data import bundle_corpus, bundle_spec, features_alone  # noqa: E402
from mer_export.data.dialogues import Utterance  # noqa: E402
from mer_export.data.open import said_extractors  # noqa: E402
from mer_export.data.parts import cut, open_part  # noqa: E402
from mer_export.data.spec import DataSpec  # noqa: E402
from mer_export.encoders.attached import attach, attached, found_beside, save_beside, together  # noqa: E402
from mer_export.encoders.encoder import Encoder  # noqa: E402
from mer_export.errors import BundleError, UsageError  # noqa: E402
from mer_export.untrusted.stored import stored_files  # noqa: E402
from runtimes.features.completed import Completion, split_samples  # noqa: E402
from runtimes.features.encoded import Outcome  # noqa: E402
from runtimes.pipeline import How  # noqa: E402
from runtimes.predict.machine_profile import Goal, choose  # noqa: E402
from runtimes.scale.desk import Desk  # noqa: E402
from runtimes.speed.tune import run_tune  # noqa: E402

ROWS = [("hello there you", 1.0), ("a", 0.4), ("", 0.7), ("the quick brown fox", 0.0)]
"""A sentence and seconds of sound; the third says nothing, the last is silent."""


@pytest.fixture(scope="module")
def encoders(once: Once) -> dict[str, Encoder]:
    return {name: attached_encoder(once, name) for name in KINDS}


@pytest.fixture(scope="module")
def model(once: Once) -> Path:
    return attached_model(once)


@pytest.fixture(scope="module")
def infer() -> Iterator[Infer]:
    with inferring() as answers:
        yield answers


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of recordings and sentences that nothing describes."""
    folder, draw = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    rows = []
    for number, (sentence, length) in enumerate(ROWS):
        sound = 0.1 * draw.standard_normal(round(16000 * (length or 0.5))) * (length > 0)
        soundfile.write(folder / f"{number}.wav", sound, 16000)
        rows.append({"recording": f"{number}.wav", "sentence": sentence})
    with (folder / "clips.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["recording", "sentence"])
        table.writeheader()
        table.writerows(rows)
    return folder / "clips.csv"


def test_recordings_and_sentences_get_the_labels_of_their_features_and_silence_is_missing_and_not_zeros(
    infer: Infer, model: Path, clips: Path, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    from mer_export.data.media.sound import read_sound
    from runtimes.encode import load_encoder
    from runtimes.predict.predictor import Predictor

    answers, said = infer(model, clips, tmp_path / "answers.jsonl")
    assert "it is read by the names of its columns" in said
    samples = []
    with load_encoder(encoders["text"]) as text, load_encoder(encoders["audio"]) as audio:
        for number, (sentence, length) in enumerate(ROWS):
            sample: dict[str, object] = {"id": str(number)}
            if sentence:
                sample["text"] = next(iter(text.encode([sentence])))[None]
            if length:
                sample["audio"] = next(iter(audio.encode([read_sound(clips.parent / f"{number}.wav").mono(16000)])))
            samples.append(sample)
    with Predictor(Bundle.open(model)) as predictor:
        wanted = list(predictor.predict(samples))
    assert [a["label"] for a in answers] == [w.label for w in wanted]
    assert [a["modalities"] for a in answers] == [["text", "audio"], ["text", "audio"], ["audio"], ["text"]]
    for answer, prediction in zip(answers, wanted, strict=True):
        assert answer["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)


def test_a_file_that_cannot_be_read_is_named_and_has_no_label_and_the_others_do(
    infer: Infer, model: Path, clips: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(clips.parent, tmp_path / "clips"))
    (folder / "1.wav").write_bytes((folder / "1.wav").read_bytes()[:2000])
    answers, said = infer(model, folder / "clips.csv", tmp_path / "answers.jsonl")
    assert [a["label"] is None for a in answers] == [False, True, False, False]
    assert "1.wav" in said
    assert "unreadable 1" in said


def test_a_goal_chooses_encoders_and_fusion_apart_and_so_it_does_in_blocks(
    infer: Infer, model: Path, clips: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    bundle = Bundle.open(shutil.copytree(model, tmp_path / "bundle"))
    profile = run_tune(bundle, batches=(1, 2), precisions=("fp32",))
    best = ("text", "openvino"), ("audio", "onnxruntime")
    times = {True: {1: 1.0, 2: 0.6}, False: {1: 9.0, 2: 9.0}}
    rows = [r.model_copy(update={"item_ms": times[(r.input, r.runtime) in best]}) for r in profile.encoders]
    profile = profile.model_copy(update={"encoders": rows})
    profile.save(bundle)
    plain, _ = infer(bundle.root, clips, tmp_path / "plain.jsonl", "--runtime", "onnxruntime")
    answers, said = infer(bundle.root, clips, tmp_path / "goal.jsonl", "--goal", "throughput")
    assert [a["label"] for a in answers] == [a["label"] for a in plain]
    assert f"throughput: {choose(profile, Goal('throughput')).way.description}\n" in said
    assert [line for line in said.splitlines() if line.startswith("throughput, ")] == [
        f"throughput, {n}: source by {runtime}, batch 2" for n, runtime in best
    ]
    folder = Path(shutil.copytree(clips.parent, tmp_path / "lines"))
    told = [{"sentence": words, "recording": f"{n}.wav"} for n, (words, _) in enumerate(ROWS)]
    lines = [json.dumps({"dialogue": str(n), "utterances": [u]}) for n, u in enumerate(told)]
    (folder / "clips.jsonl").write_text("\n".join(lines))
    with Desk(bundle.root, How(goal="latency")) as desk:
        completion, predictor = desk.completion, desk.predictor
        assert completion
        ran = {n: (e.predictor.backend, e.predictor.batch) for n, (e,) in completion.encoder.loaded.items()}
        assert ran == {n: (runtime, 1) for n, runtime in best}
        assert predictor.backend == choose(profile, Goal("latency")).way.backend
        (file,) = stored_files(str(folder / "clips.jsonl"))
        (part,) = cut(file, 1 << 20)
        data = open_part(part, bundle_spec(bundle, folder / "clips.jsonl"), desk.labels)
        assert [p.label for p in desk.predictions(data)] == [a["label"] for a in plain]


def test_data_that_commands_measure_with_go_through_the_encoders(model: Path, clips: Path) -> None:
    samples = split_samples(Bundle.open(model), clips, "auto", "all")
    assert [sorted({"text", "audio"} & s.inputs.keys()) for s in samples] == [
        ["audio", "text"],
        ["audio", "text"],
        ["audio"],
        ["text"],
    ]


def test_eval_encodes_the_split_that_it_measures_alone(
    mer: Mer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "said.jsonl"
    encoded: list[str] = []
    said = {"sentence": "hello there you", "label": Bundle.open(model).manifest.task.labels[0]}
    lines = [{"dialogue": s, "split": s, "utterances": [said]} for s in ("train", "test")]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    encode = Completion._with

    def noted(self: Completion, utterance: Utterance, outcome: Outcome) -> Utterance:
        encoded.append(utterance.id)
        return encode(self, utterance, outcome)

    monkeypatch.setattr(Completion, "_with", noted)
    code, out, err = mer("eval", model, "--data", data, "--json")
    assert code == 0, err
    assert json.loads(out)["units"] == 1
    assert encoded == ["test/0"]


def test_a_command_that_runs_no_encoder_says_how_the_features_are_made(model: Path, clips: Path) -> None:
    bundle = Bundle.open(model)
    with pytest.raises(UsageError, match=r"has no (text|audio) features of 0.wav, and no encoder runs here") as caught:
        bundle_corpus(bundle, clips, through=features_alone(bundle, clips))
    command = str(caught.value).split("`")[1]
    assert command.startswith(f"mer features {clips} --encoder ")
    assert all(f"{n}={model}/encoders/{n}/0" in command for n in ("text", "audio"))


def test_a_runtime_that_runs_no_file_of_an_encoder_is_that_of_the_model(model: Path) -> None:
    completion = How("torchscript", threads=2).encoders(Bundle.open(model))
    assert completion
    with completion:
        ran = {(e.predictor.backend, e.predictor.options.threads) for (e,) in completion.encoder.loaded.values()}
        assert ran == {("onnxruntime", 2)}


def test_what_a_bundle_takes_along_is_checked_like_all_that_it_holds(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    assert Bundle.open(copy).verify() > 0
    (file,) = (copy / "encoders" / "audio" / "0").rglob("*.onnx")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match="checksum"):
        Bundle.open(copy).verify()
    (encoder,) = attached(Bundle.open(copy))["audio"]
    with pytest.raises(BundleError, match="checksum"):
        encoder.bundle.variant_files(encoder.bundle.manifest.variants[0])


def test_encoders_of_a_change_that_was_cut_short_are_the_new_ones(model: Path, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(model, tmp_path / "copy"))
    with cut_short(copy, 0) as change:
        for name in (n for n in copy.manifest.files if n.startswith("encoders/text/")):
            shutil.copyfile(copy.path(name), change.file(name))
    for name in ("vocab.txt", "tokenizer.json"):
        for old in (copy.root / "encoders" / "text").rglob(name):
            old.write_text("old")
    (encoder,) = attached(Bundle.open(copy.root))["text"]
    assert len(encoder.tokenizer.encode("hello there")) > 2


def test_only_the_encoder_of_the_training_features_is_taken_along(encoders: dict[str, Encoder], tmp_path: Path) -> None:
    bundle = make_emt(tmp_path / "bundle", "mult vectors", **WIDTHS | {"vision_dim": 3})
    own = together([encoders["text"]])
    numbers = {"width": 32, "mean": 0.0, "std": 1.0, "minimum": -9.0, "maximum": 9.0}
    with bundle.commit() as change:
        change.manifest.features["text"] = FeatureStatistics(extractor=own.name, sha256="0" * 64, **numbers)
    with pytest.raises(UsageError, match=r"text was extracted by source \(000000000000\) for training, this is"):
        attach(bundle, {"text": [encoders["text"]]})
    with pytest.raises(UsageError, match="vision is 3 wide"):
        attach(bundle, {"vision": [encoders["text"]]})
    with pytest.raises(UsageError, match=r"reads text: write text=.*encoder"):
        attach(bundle, {"audio": [encoders["text"]]}, force=True)
    with bundle.commit() as change:
        change.manifest.features["text"] = FeatureStatistics(extractor=own.name, sha256=own.sha256, **numbers)
    attach(bundle, {"text": [encoders["text"]]})
    assert list(Bundle.open(bundle.root).manifest.encoders) == ["text"]
    again = Bundle.open(shutil.copytree(encoders["text"].bundle.root, tmp_path / "again"))
    with again.commit() as change:
        change.manifest.provenance["note"] = "as if it had more variants now"
    for force in (False, True):
        attach(bundle, {"text": [Encoder.of(again)]}, force)
        assert ("note" in attached(Bundle.open(bundle.root))["text"][0].bundle.manifest.provenance) == force


def test_encoders_beside_a_data_set_are_found_by_what_it_says_of_its_features(
    encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    data = tmp_path / "clips.parquet"
    save_beside(data, {n: [e] for n, e in encoders.items()})
    said = {n: together([e]) for n, e in encoders.items()}
    (tmp_path / "clips.encoders" / "text" / ".DS_Store").write_bytes(b"")
    found = found_beside(data, said)
    assert {n: together(e) for n, e in found.items()} == said
    assert found_beside(data, {"text": said["audio"]}) == {}


def test_features_beside_others_under_the_same_name_keep_the_encoders_of_both(
    mer: Mer, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    data = tmp_path / "clips.jsonl"
    head = {"unit": "utterance", "extractors": {"audio": together([encoders["audio"]]).model_dump()}}
    utterances = [{"sentence": words, "audio": [[0.5] * 32]} for words, _ in ROWS]
    lines = [head, *({"dialogue": str(n), "utterances": [u]} for n, u in enumerate(utterances))]
    data.write_text("\n".join(map(json.dumps, lines)))
    save_beside(data, {"audio": [encoders["audio"]]})
    out, folder = tmp_path / "clips.parquet", encoders["text"].bundle.root
    code, _, err = mer("features", data, "--encoder", f"text={folder}", "--out", out, "-q")
    assert code == 0, err
    assert found_beside(out, said_extractors(out, DataSpec())).keys() == {"text", "audio"}
