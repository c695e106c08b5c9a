"""Encoders inside a bundle: recordings and sentences in, labels out, in a process without PyTorch."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")

from small_emt import make_emt  # noqa: E402

from benchmarks.small_encoders import save_folder  # noqa: E402
from mer_export.bundle import Bundle, FeatureStatistics  # noqa: E402
from mer_export.encoders.attached import attach, attached, found_beside, save_beside, together  # noqa: E402
from mer_export.encoders.encoder import Encoder  # noqa: E402
from mer_export.errors import BundleError, UsageError  # noqa: E402
from mer_export.exporters import export_variant  # noqa: E402
from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder  # noqa: E402

ROOT = Path(__file__).parent.parent
WIDTHS = {"text_dim": 32, "audio_dim": 32, "vision_dim": 3}
ROWS = [("hello there you", 1.0), ("a", 0.4), ("", 0.7), ("the quick brown fox", 0.0)]
"""A sentence and seconds of sound; the third says nothing, the last is silent."""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    """Of text and of sound, for their longest lengths."""
    found = {}
    for name, kind, wanted in (
        ("text", "bert", Wanted(longest=24, buckets=(24,))),
        ("audio", "whisper", Wanted(window=1.0, pooling="none", every=10)),
    ):
        folder = tmp_path_factory.mktemp(name)
        save_folder(kind, folder / "source")
        bundle = import_folder(folder / "source", folder / "encoder", wanted)
        export_variant(bundle, "onnx", bundle.manifest.contract.buckets[0])
        found[name] = Encoder.open(folder / "encoder")
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, encoders: dict[str, Encoder]) -> Path:
    """A network on text, sound and pictures with the encoders of the first two inside, exported."""
    root = tmp_path_factory.mktemp("model") / "bundle"
    bundle = make_emt(root, "mult vectors", **WIDTHS)
    export_variant(bundle, "onnx", bundle.manifest.contract.buckets[-1])
    attach(Bundle.open(root), {n: [e] for n, e in encoders.items()})
    return root


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


def infer(bundle: Path, source: Path, out: Path, *more: str) -> tuple[list[dict[str, object]], str]:
    """What `mer infer` writes in a process of its own, in which importing torch or transformers is an error."""
    code = "import sys; sys.modules.update(torch=None, transformers=None); import cli; cli.main()"
    command = [sys.executable, "-c", code, "infer", str(bundle), str(source), "-o", str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()], done.stdout + done.stderr


def test_recordings_and_sentences_get_the_labels_of_their_features(
    model: Path, clips: Path, encoders: dict[str, Encoder], tmp_path: Path
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
    for answer, prediction in zip(answers, wanted, strict=True):
        assert answer["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)


def test_silence_and_an_empty_sentence_are_missing_and_not_zeros(model: Path, clips: Path, tmp_path: Path) -> None:
    answers, _ = infer(model, clips, tmp_path / "answers.jsonl")
    assert [a["modalities"] for a in answers] == [["text", "audio"], ["text", "audio"], ["audio"], ["text"]]


def test_a_file_that_cannot_be_read_is_named_and_has_no_label_and_the_others_do(
    model: Path, clips: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(clips.parent, tmp_path / "clips"))
    (folder / "1.wav").write_bytes((folder / "1.wav").read_bytes()[:2000])
    answers, said = infer(model, folder / "clips.csv", tmp_path / "answers.jsonl")
    assert [a["label"] is None for a in answers] == [False, True, False, False]
    assert "1.wav" in said
    assert "unreadable 1" in said


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


def test_only_the_encoder_of_the_training_features_is_taken_along(encoders: dict[str, Encoder], tmp_path: Path) -> None:
    bundle = make_emt(tmp_path / "bundle", "mult vectors", **WIDTHS)
    own = together([encoders["text"]])
    numbers = {"width": 32, "mean": 0.0, "std": 1.0, "minimum": -9.0, "maximum": 9.0}
    with bundle.commit() as change:
        change.manifest.features["text"] = FeatureStatistics(extractor=own.name, sha256="0" * 64, **numbers)
    with pytest.raises(UsageError, match=r"text was extracted by source \(000000000000\) for training, this is"):
        attach(bundle, {"text": [encoders["text"]]})
    with pytest.raises(UsageError, match="vision is 3 wide"):
        attach(bundle, {"vision": [encoders["text"]]})
    with bundle.commit() as change:
        change.manifest.features["text"] = FeatureStatistics(extractor=own.name, sha256=own.sha256, **numbers)
    attach(bundle, {"text": [encoders["text"]]})
    assert list(Bundle.open(bundle.root).manifest.encoders) == ["text"]


def test_encoders_beside_a_data_set_are_found_by_what_it_says_of_its_features(
    encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    data = tmp_path / "clips.parquet"
    save_beside(data, {n: [e] for n, e in encoders.items()})
    said = {n: together([e]) for n, e in encoders.items()}
    found = found_beside(data, said)
    assert {n: together(e) for n, e in found.items()} == said
    assert found_beside(data, {"text": said["audio"]}) == {}
