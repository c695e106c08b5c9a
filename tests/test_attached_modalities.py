"""Clips with all three modalities: faces are found in their pictures, and every file of a clip has its label."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")

from conftest import CONTAINERS, Mer, Once  # noqa: E402
from small_attached import KINDS, Infer, attached_encoder, attached_model, inferring  # noqa: E402
from test_faces import published, save_weights  # noqa: E402

import cli  # noqa: E402
from benchmarks.small_encoders import save_folder  # noqa: E402
from mer_export.bundle import Bundle  # noqa: E402
from mer_export.encoders.attached import attach  # noqa: E402
from mer_export.encoders.encoder import Encoder  # noqa: E402
from runtimes.backends.way import find_ways  # noqa: E402
from runtimes.pages.report import write_report  # noqa: E402
from runtimes.speed.bench import run_bench  # noqa: E402
from runtimes.speed.bench_report import chain_table  # noqa: E402
from runtimes.speed.tune import run_tune  # noqa: E402


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
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line makes of MTCNN's weights: the published ones where they are, else random ones."""
    root = tmp_path_factory.mktemp("detector")
    out, weights = root / "made", published() or save_weights(root)
    run("encoder", weights, "-o", out)
    return out


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory, detector: Path) -> Path:
    """A small random encoder of the faces that it finds."""
    root = tmp_path_factory.mktemp("faces")
    save_folder("vit", root / "source")
    said = run(
        "encoder",
        root / "source",
        "-o",
        root / "made",
        "--faces",
        detector,
        "--margin",
        "0.3",
        "--frames",
        "7",
        "--json",
    )
    assert json.loads(said)["reads"] == "faces"
    return root / "made"


def run(*words: str | Path) -> str:
    """What `mer` prints, in this process."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["mer", *map(str, words)])
        with contextlib.suppress(SystemExit):
            cli.main()
    return printed.getvalue()


def test_an_encoder_of_faces_takes_its_detector_along(faces: Path, detector: Path) -> None:
    encoder = Encoder.open(faces)
    assert (encoder.input.faces.size, encoder.input.faces.margin, encoder.input.frames) == (32, 0.3, 7)
    for name in ("pnet.onnx", "rnet.onnx", "onet.onnx"):
        assert encoder.bundle.path(f"faces/{name}").read_bytes() == (detector / name).read_bytes()
    assert encoder.bundle.manifest.variants


def test_faces_are_those_of_pictures(mer: Mer, tmp_path: Path, detector: Path) -> None:
    save_folder("bert", tmp_path / "text")
    for words, said in (
        ([tmp_path / "text", "--faces", detector], "reads text: faces are of encoders of pictures"),
        ([tmp_path / "text", "--margin", "0.3"], "--margin is that of faces: name their detector with --faces"),
        ([tmp_path / "text", "--faces", tmp_path / "text"], "pnet.onnx is not there"),
        ([tmp_path / "text", "--frames", "3"], "reads text: frames are of encoders of pictures"),
        (["log_mel", "--faces", detector], "--faces says nothing of a signal"),
    ):
        code, _, err = mer("encoder", *words, "-o", tmp_path / "made")
        assert code != 0
        assert said in err
        assert not (tmp_path / "made").exists()


SENTENCE = "hello there"
BROKEN = {p.name for p in CONTAINERS.glob("broken_*")} - {"broken_header_odd_data.wav"}
NOTHING = BROKEN | {"zero_samples.wav", "not_audio_text.wav"}
"""Files that cannot be read; the last sample of the odd one lacks a byte, the others are there."""
FACES = {"face_happy.mp4", "face_angry.webm", "vfr.mp4", "video_only.mp4"}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory, model: Path, faces: Path) -> Path:
    """The model with encoders of all three."""
    copy = Path(shutil.copytree(model, tmp_path_factory.mktemp("seeing") / "bundle"))
    attach(Bundle.open(copy), {"vision": [Encoder.open(faces)]})
    return copy


@pytest.mark.skipif(not CONTAINERS.is_dir(), reason="no media files beside the repository")
def test_a_recording_goes_through_all_modalities_and_a_broken_one_has_no_label(
    infer: Infer, seeing: Path, tmp_path: Path
) -> None:
    """Plumbing: networks and, without MTCNN's published weights, the detector are random. No accuracy is shown here."""
    folder = Path(shutil.copytree(CONTAINERS, tmp_path / "clips"))
    folder.chmod(0o755)
    names = sorted(p.name for p in folder.iterdir() if p.suffix != ".md")
    table = "".join(f"{n},{n},{SENTENCE}\n" for n in names)
    (folder / "clips.csv").write_text(f"id,recording,sentence\n{table}")
    found, said = infer(seeing, folder / "clips.csv", tmp_path / "answers.jsonl")
    answers = dict(zip(names, found, strict=True))
    assert {n for n, a in answers.items() if a["label"] is None} == NOTHING
    assert f"unreadable {len(NOTHING)}" in said
    heard = {n for n, a in answers.items() if "audio" in (a.get("modalities") or ())}
    assert heard == set(names) - NOTHING - {"video_only.mp4"}
    seen = {n for n, a in answers.items() if "vision" in (a.get("modalities") or ())}
    assert "audio_only.mp4" not in seen
    if published():
        assert seen == FACES


def test_encoders_and_fusion_are_timed_apart_and_add_up(seeing: Path) -> None:
    bundle = Bundle.open(seeing)
    ways = [w for w in find_ways(bundle, 1) if w.backend in ("torch", "onnxruntime")]
    report = run_bench(bundle, None, batches=(1,), rounds=1, ways=ways, cold=False)
    assert {r.input for r in report.encoders} == {"text", "audio", "vision"}
    assert {r.items for r in report.encoders if r.input == "vision"} == {7}
    _, rows = chain_table(report)
    *parts, (_, whole) = [(name, float(cell.split()[0])) for name, cell in rows]
    assert [name.split()[0] for name, _ in parts] == ["text", "audio", "vision", "fusion"]
    assert whole == pytest.approx(sum(ms for _, ms in parts), abs=0.03)
    assert "## Encoders" in report.page()
    report.save(bundle)
    assert "ms an utterance" in write_report(bundle).read_text()
    profile = run_tune(bundle, batches=(1,), precisions=("fp32",))
    assert {r.input for r in profile.encoders} == {"text", "audio", "vision"}
    assert "Encoders, their networks alone" in profile.page()


RATE = 16000
LOSSLESS, LOSSY = ("wav", "flac"), ("mp3", "ogg", "mp4")


def voice(seed: int) -> np.ndarray:
    """Sound (samples,) int16 with a pitch that moves, its harmonics, and syllables."""
    # As long as whole frames of AAC: it fills the last one with silence, which would be heard.
    draw, time = np.random.default_rng(seed), np.arange(28 * 1024) / RATE
    pitch = 120 + 60 * draw.random() + 25 * np.sin(2 * np.pi * (1 + draw.random()) * time)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    harmonics = sum(draw.random() / k * np.sin(k * phase) for k in range(1, 25))
    loud = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * time)
    return (5000 * loud * harmonics).astype(np.int16)


def write(path: Path, sound: np.ndarray) -> None:
    """As the ending says: ogg holds Opus, mp4 AAC."""
    if path.suffix != ".mp4":
        soundfile.write(path, sound, RATE, subtype={".ogg": "OPUS"}.get(path.suffix))
        return
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        stream.bit_rate = 96000
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32) / 32768, format="fltp", layout="mono")
        frame.rate, frame.pts = RATE, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def test_one_clip_has_the_same_label_in_every_file_and_features_as_near_as_its_codec(
    mer: Mer, model: Path, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    """Of lossy files features differ from those of wav by less than a quarter of what sets two clips apart."""
    from mer_export.data.media.sound import read_sound
    from runtimes.encode import load_encoder

    write(tmp_path / "other.wav", voice(1))
    for ending in (*LOSSLESS, *LOSSY):
        write(tmp_path / f"clip.{ending}", voice(0))
    names = ["other.wav", *(f"clip.{e}" for e in (*LOSSLESS, *LOSSY))]
    with load_encoder(encoders["audio"]) as encoding:
        made = encoding.encode(read_sound(tmp_path / n).mono(RATE) for n in names)
        features = dict(zip(names, made, strict=True))
    wav = features["clip.wav"]
    apart = np.linalg.norm(features["other.wav"] - wav)
    np.testing.assert_allclose(features["clip.flac"], wav, atol=1e-6)
    for ending in LOSSY:
        assert np.linalg.norm(features[f"clip.{ending}"] - wav) < 0.25 * apart
    rows = "".join(f"{n},{n},{SENTENCE}\n" for n in names[1:])
    (tmp_path / "clips.csv").write_text(f"id,recording,sentence\n{rows}")
    code, _, err = mer("infer", model, tmp_path / "clips.csv", "-o", tmp_path / "answers.jsonl")
    assert code == 0, err
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len({a["label"] for a in answers}) == 1
    assert all(a["modalities"] == ["text", "audio"] for a in answers)
    for answer in answers:
        assert answer["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-3)
