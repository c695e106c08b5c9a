"""Data of tab: speech tokens, context windows, folds, the IEMOCAP release, transcripts and recordings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_tab import (
    SENTENCES,
    TEXT,
    WIDTH,
    make_tab,
    sentence_encoder,
    speech_network,
    speech_tokenizer,
    text_tokenizer,
)
from torch.nn import functional

from mer_export.agreement.policy import PROOF
from mer_export.bundle import MANIFEST, Bundle
from mer_export.data.formats.tab.folds import RUNS, cross_validation, held_out_sessions
from mer_export.data.formats.tab.iemocap_release import LABELS, SESSIONS
from mer_export.data.formats.tab.prepare import prepare
from mer_export.data.formats.tab.reader import read_table
from mer_export.data.inspect import inspect_file
from mer_export.data.media.sound import read_sound, resample, write_sound
from mer_export.data.open import open_corpus, stream_samples
from mer_export.data.samples import Sample
from mer_export.data.shapes.windows import context_windows
from mer_export.data.spec import DataSpec
from mer_export.data.synthetic import synthesise
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.encoders import running
from mer_export.encoders.context import with_kept
from mer_export.encoders.running import sentence_vectors, speech_tokens
from mer_export.encoders.vq_wav2vec.config import contract as vq_contract
from mer_export.encoders.vq_wav2vec.network import VqWav2vec
from mer_export.errors import InputError, UsageError
from mer_export.exporters.export_job import prove
from runtimes.encode import open_encoder

RATE = 16000
SHARED = Path(os.environ.get("MER_SAMPLE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def by_id(samples: object) -> dict[str, Sample]:
    return {s.id: s for s in samples}  # type: ignore[attr-defined]


# --- speech tokens ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_tokenizer(tmp_path_factory.mktemp("speech") / "tokenizer")


def exact(model: VqWav2vec, audio: np.ndarray) -> np.ndarray:
    """Indices at the true length, by PyTorch's own group norm."""

    def normal(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        return functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)

    with torch.no_grad():
        x = torch.from_numpy(audio)[None, None]
        for layer in model.layers:
            x = functional.gelu(normal(layer.norm, layer.convolution(x)))
        return model.nearest(normal(model.norm, model.projection(x)))[0].numpy()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_speech_has_its_own_tokens_whatever_stands_beside_it_and_behind_it(speech: Path, backend: str) -> None:
    pytest.importorskip(backend)
    model, draw = speech_network(), np.random.default_rng(0)
    sounds = [0.1 * draw.standard_normal(n, dtype=np.float32) for n in (465, 700, 5001, 12000, 32000)]
    with open_encoder(speech, backend, batch=4) as encoding:
        found = list(encoding.encode(sounds))
        wanted = [exact(model, s) for s in sounds]
        assert [len(w) for w in wanted] == [model.config.frames(len(s)) for s in sounds] == [len(f) for f in found]
        other = sum(int((f != w).sum()) for f, w in zip(found, wanted, strict=True))
        assert other <= PROOF.flip_share * sum(w.size for w in wanted)
        with pytest.raises(InputError, match="464 samples are too short, one token needs 465"):
            list(encoding.encode([sounds[0][:464]]))
        with pytest.raises(InputError, match=r"2\.0 s are longer than the 2 s that this tokenizer was made for"):
            list(encoding.encode([np.zeros(32001, dtype=np.float32)]))


def test_a_few_other_indices_are_rounding_and_more_are_no_export() -> None:
    contract = vq_contract(speech_network().encoder)
    reference = {"states": np.zeros((1, 600, 2), dtype=np.int64)}
    job = SimpleNamespace(contract=contract, reference=reference)
    found = reference["states"].copy()
    found[0, :2, 0] = 1
    prove(job, [found], "the file")  # type: ignore[arg-type]
    found[0, :3, 0] = 1
    with pytest.raises(UsageError, match="differs from the model in states by 3 of 1200 indices"):
        prove(job, [found], "the file")  # type: ignore[arg-type]


def test_resampling_keeps_a_tone(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    for wanted in (22050, 16000, 6000):
        found = resample(tone, 8000, wanted)
        exact = np.sin(2 * np.pi * 440 * np.arange(len(found)) / wanted)
        middle = slice(len(found) // 4, -len(found) // 4)
        np.testing.assert_allclose(found[middle], exact[middle], atol=1e-5)
        assert len(found) == wanted
    write_sound(tmp_path / "a.wav", 0.5 * tone, 8000)
    sound = read_sound(tmp_path / "a.wav")
    assert (sound.samples.shape, sound.rate) == ((8000, 1), 8000)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"b\.wav is not a sound or video file"):
        read_sound(tmp_path / "b.wav")


def test_real_recordings_become_tokens(speech: Path) -> None:
    recordings = sorted((SHARED / "ravdess_av" / "wav16k").glob("*.wav"))[:2]
    if not recordings:
        pytest.skip("no sample recordings here")
    shape = speech_network().config
    for path in recordings:
        ids = speech_tokens(str(speech), path, read_sound(path, 0.5, 1.5))
        assert len(ids) == shape.frames(RATE) + 2
        assert (ids[0], ids[-1]) == (0, 2)


# --- context windows and folds ---------------------------------------------------------------------------------------


def test_windows_near_the_beginning_are_cut_as_the_files_or_as_the_description_say() -> None:
    vectors, groups = np.arange(1.0, 6.0)[:, None], ["a", "a", "a", "b", "b"]
    left = context_windows(vectors, groups, 1)
    assert left.tolist() == [[1, 2, 0], [1, 2, 3], [2, 3, 0], [4, 5, 0], [4, 5, 0]]
    centred = context_windows(vectors, groups, 1, "centred")
    assert centred.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 0], [0, 4, 5], [4, 5, 0]]
    assert context_windows(vectors, groups, 0).tolist() == vectors.tolist()
    with pytest.raises(InputError, match="do not fit"):
        context_windows(vectors, groups[1:], 1)


def test_every_speaker_is_tested_once_in_ten_runs() -> None:
    sessions, speakers = [s for s in SESSIONS for _ in "FM"], ["F", "M"] * len(SESSIONS)
    tested = []
    for run in range(RUNS):
        split = cross_validation(sessions, speakers, run)
        assert sorted(split.train + split.valid + split.test) == list(range(10))
        assert {sessions[i] for i in split.valid + split.test} == {held_out_sessions()[run % 5]}
        tested += split.test
    assert sorted(tested) == list(range(10))
    with pytest.raises(UsageError, match="fold 10 does not exist"):
        cross_validation(sessions, speakers, 10)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two utterances per session in the form of the IEMOCAP release, and one that nobody agreed on."""
    root = tmp_path_factory.mktemp("release")
    draw = np.random.default_rng(0)
    for session in SESSIONS:
        name, folder = f"Ses0{session}F_impro01", root / f"Session{session}" / "dialog"
        for part in ("EmoEvaluation", "transcriptions", "wav"):
            (folder / part).mkdir(parents=True)
        turns = [("F000", LABELS[session - 1]), ("M000", "xxx"), ("M001", "neu")]
        blocks = [
            f"[{i * 0.1:.4f} - {i * 0.1 + 0.09:.4f}]\t{name}_{turn}\t{label}\t[2.5, 2.5, 2.5]\nC-E2:\tNeutral;\t()"
            for i, (turn, label) in enumerate(turns)
        ]
        (folder / "EmoEvaluation" / f"{name}.txt").write_text("% [START]\n\n" + "\n\n".join(blocks) + "\n\n")
        lines = [f"{name}_{turn} [000.1-000.2]: {SENTENCES[i].upper()}" for i, (turn, _) in enumerate(turns)]
        (folder / "transcriptions" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        sound = (2000 * draw.standard_normal(RATE // 2)).astype(np.int16)
        write_sound(folder / "wav" / f"{name}.wav", sound, RATE)
    return root


def test_the_release_becomes_files_and_samples(release: Path, speech: Path, tmp_path: Path) -> None:
    text_tokenizer(tmp_path / "text")
    out, tokenizer = tmp_path / "data", str(tmp_path / "text")
    sentence_encoder(tmp_path / "sentences")
    encoder = str(tmp_path / "sentences")
    done = prepare(release, out, tokenizer=tokenizer, speech=str(speech), encoder=encoder, sizes=[3])
    assert done == {"utterances": 10, "GPT2Tokens": 10, "vqw2vTokens": 10, "BertEmb": 20}
    assert (out / "labels_train_t.txt").read_text().splitlines()[:2] == ["0_F_s_1_ang.txt\t0", "1_M_s_1_neu.txt\t4"]
    assert (out / "no_labels_train_t.txt").read_text().startswith("0_s_1_ang.txt")
    assert (out / "Text" / "0_F_s_1_ang.txt").read_text() == SENTENCES[0]
    written = by_id(open_corpus(out))
    assert (
        written["0_F_s_1_ang"].inputs["text_tokens"].tolist()
        == TextTokenizer.load(tokenizer).encode(SENTENCES[0]).tolist()
    )
    assert {s.inputs["audio_tokens"][0] for s in written.values()} == {0}
    for folder in ("GPT2Tokens", "vqw2vTokens", "BertEmb", "FullBertEmb3"):
        (out / folder).rename(tmp_path / folder)
    read = by_id(
        open_corpus(
            out, DataSpec(format="tab", tokenizer=tokenizer, context={"speech": str(speech), "encoder": encoder})
        )
    )
    for name, sample in written.items():
        for key in ("text_tokens", "audio_tokens", "tab_embedding"):
            assert np.array_equal(sample.inputs[key], read[name].inputs[key])
    with pytest.raises(UsageError, match="exists"):
        prepare(release, out)


def test_windows_are_read_or_made_of_sentence_vectors(tmp_path: Path) -> None:
    synthesise(
        "tab", "iemocap", tmp_path, dialogues=30, width=WIDTH, sizes=[1], text_vocabulary=60, audio_vocabulary=70
    )
    report = inspect_file(tmp_path, DataSpec())
    assert (report["format"], sum(s["utterances"] for s in report["splits"].values())) == ("tab", 30)
    files = by_id(open_corpus(tmp_path, DataSpec(format="tab", context={"size": 1})))
    (tmp_path / "FullBertEmb1").rename(tmp_path / "elsewhere")
    made = by_id(open_corpus(tmp_path, DataSpec(format="tab", context={"size": 1})))
    wide = by_id(open_corpus(tmp_path, DataSpec(format="tab", context={"size": 2})))
    assert all(np.array_equal(s.inputs["tab_embedding"], made[n].inputs["tab_embedding"]) for n, s in files.items())
    assert {s.inputs["tab_embedding"].shape for s in wide.values()} == {(5 * WIDTH,)}
    (tmp_path / "BertEmb" / "3_F_s_1_ang.txt").touch()
    row = next(iter((tmp_path / "BertEmb").glob("4_*")))
    row.write_text("1.0\t2.0\n")
    with pytest.raises(InputError, match=r"several widths|has 2 values"):
        open_corpus(tmp_path, DataSpec(format="tab", context={"size": 1}))


def test_transcripts_and_recordings_in_json_lines_are_tokenized(speech: Path, tmp_path: Path) -> None:
    text_tokenizer(tmp_path / "text")
    sound = (2000 * np.random.default_rng(0).standard_normal(RATE // 4)).astype(np.int16)
    write_sound(tmp_path / "one.wav", sound, RATE)
    spoken = [
        {"id": "a", "sentence": SENTENCES[1].upper(), "text": [1.0] * WIDTH, "recording": "one.wav"},
        {"id": "b", "text_tokens": [0, 5, 2], "text": [2.0] * WIDTH, "audio_tokens": [0, 7, 2], "label": "sad"},
    ]
    file = tmp_path / "calls.jsonl"
    file.write_text(json.dumps({"dialogue": "d", "utterances": spoken}) + "\n")
    spec = DataSpec(tokenizer=str(tmp_path / "text"), context={"size": 1, "speech": str(speech)})
    first, second = stream_samples(file, spec, ["angry", "sad"])
    assert first.inputs["text_tokens"].tolist() == TextTokenizer.load(tmp_path / "text").encode(SENTENCES[1]).tolist()
    assert first.inputs["audio_tokens"].tolist() == speech_tokens(str(speech), tmp_path / "one.wav").tolist()
    assert first.inputs["tab_embedding"].reshape(3, WIDTH)[:, 0].tolist() == [1, 2, 0]
    assert (second.inputs["text_tokens"].tolist(), second.inputs["audio_tokens"].tolist()) == ([0, 5, 2], [0, 7, 2])
    assert second.labels is not None
    assert second.labels.tolist() == [1]
    file.write_text(json.dumps({"dialogue": "d", "utterances": [{"id": "a"}]}) + "\n")
    (nothing,) = stream_samples(file, spec, ["angry", "sad"])
    assert dict(nothing.inputs) == {}
    file.write_text(json.dumps({"dialogue": "d", "utterances": [{"id": "a", "sentence": "words"}]}) + "\n")
    with pytest.raises(InputError, match="neither tokens nor anything to make them of"):
        list(stream_samples(file, DataSpec(context={"size": 1}), ["angry", "sad"]))


def test_a_table_gives_windows_within_a_dialogue(tmp_path: Path) -> None:
    text_tokenizer(tmp_path / "text")
    rows = ["talk,turn,said,felt,part", *(f"{i // 3},{-i},{'yes' if i % 2 else 'no'},sad,train" for i in range(6))]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    np.save(tmp_path / "vectors.npy", np.arange(6.0)[:, None].repeat(WIDTH, axis=1))
    spec = DataSpec(
        table="table.csv",
        dialogue="talk",
        order="turn",
        utterance="turn",
        sentence="said",
        label="felt",
        split="part",
        tokenizer=str(tmp_path / "text"),
        context={"size": 1, "vectors": {"file": "vectors.npy"}},
    )
    found = open_corpus(tmp_path, spec, ["sad", "happy"]).split("train")
    # Turns count down, so the windows do too.
    assert [s.id for s in found] == ["0/-2", "0/-1", "0/0", "1/-5", "1/-4", "1/-3"]
    assert [s.inputs["tab_embedding"][::WIDTH].tolist() for s in found[:3]] == [[2, 1, 0], [2, 1, 0], [1, 0, 0]]
    assert all(s.inputs["text_tokens"].max() < TEXT["vocabulary"] + 300 for s in found)


@pytest.mark.parametrize("label", ["11", "-1", "9" * 5000])
def test_a_label_that_is_no_class_is_named_with_its_line(tmp_path: Path, label: str) -> None:
    (tmp_path / "labels_train_t.txt").write_text(f"0_F_s_1_ang.txt\t0\n1_M_s_1_neu.txt\t{label}\n")
    with pytest.raises(InputError, match=r"line 2 is .*, expected `name<TAB>label id 0\.\.4`"):
        read_table(tmp_path / "labels_train_t.txt")


def test_an_encoder_of_an_earlier_version_is_named_by_whoever_needs_it(tmp_path: Path) -> None:
    bundle = make_tab(tmp_path / "bundle", "tab")
    with bundle.commit() as change:
        change.write("tokenizer/sentences/model.onnx", b"")
        change.write("tokenizer/speech/model.onnx", b"")
    context = with_kept(DataSpec(context={}), Bundle.open(bundle.root)).context
    assert context is not None
    for part, use in (("encoder", sentence_vectors), ("speech", speech_tokens)):
        with pytest.raises(InputError, match="was made by an earlier version: make it again with mer encoder"):
            use(str(getattr(context, part)), ["no"])  # type: ignore[operator]


def test_an_encoder_that_was_written_again_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(running, "resolve", lambda _: opened.append)
    for content in ("one", "one", "another"):
        if not (tmp_path / MANIFEST).exists() or (tmp_path / MANIFEST).read_text() != content:
            (tmp_path / MANIFEST).write_text(content)
        running._encoding(str(tmp_path))
    assert opened == [str(tmp_path)] * 2


def test_tokens_are_made_without_torch() -> None:
    names = "data.tokens.tokenizer", "encoders.running", "data.formats.tab.reader", "data.shapes.context", "models.tab"
    code = f"import sys, {', '.join(f'mer_export.{n}' for n in names)}; "
    code += "assert not {'torch', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("width", "step"),
    [("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 2**-31), ("FLOAT", 0), ("DOUBLE", 0)],
)
def test_recordings_of_every_width_rate_and_number_of_channels_are_read(
    tmp_path: Path, width: str, step: float, channels: int, rate: int
) -> None:
    soundfile = pytest.importorskip("soundfile")
    sound = np.random.default_rng(0).uniform(-0.9, 0.9, (50, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, rate, subtype=width)
    found = read_sound(tmp_path / "a.wav")
    assert (found.samples.dtype, found.samples.shape, found.rate) == (np.float32, sound.shape, rate)
    np.testing.assert_allclose(found.samples, sound, rtol=1e-7, atol=step)


def test_sixteen_bits_are_written_as_they_were_read(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    whole = np.arange(-(2**15), 2**15, 7, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", whole, 16000, subtype="PCM_16")
    write_sound(tmp_path / "b.wav", read_sound(tmp_path / "a.wav").samples[:, 0], 16000)
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()


def test_values_that_are_not_finite_and_rates_that_blow_sound_up_are_refused(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "b.wav", np.asarray([0, np.nan], dtype=np.float32), 16000, subtype="FLOAT")
    with pytest.raises(InputError, match="not finite"):
        read_sound(tmp_path / "b.wav")
    with pytest.raises(InputError, match="unfold to far more"):
        resample(np.zeros(1 << 20), 1, 48000)
