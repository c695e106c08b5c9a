"""Encoders from ONNX and TorchScript files of somebody else: their numbers, held against padding and batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Mer
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.small_encoders import WORDS
from mer_export.bundle import Bundle
from mer_export.encoders.encoder import Encoder
from mer_export.encoders.file.config import FileConfig
from mer_export.encoders.log_mel import LogMel
from mer_export.errors import InputError, ParityError, UnsupportedError, UntrustedError, UsageError
from mer_export.exporters import export_variant
from mer_export.exporters.encoders.file import import_file
from mer_export.exporters.onnx import quiet
from runtimes.encode import open_encoder

onnx = pytest.importorskip("onnx")
SOURCE = {"name": "somebody's"}
FACE = {"kind": "picture", "height": 12, "width": 10}
BACKENDS = ("onnxruntime", "openvino")


class Face(nn.Module):
    """Like the networks that embed faces: one vector of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.out(self.conv(x).relu().mean((2, 3))), dim=-1)


class Words(nn.Module):
    """Attention without positions: it says of each token what the others around it are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(len(WORDS), 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        x = self.table(input_ids + token_type_ids)
        scores = x @ x.transpose(1, 2) + (1 - attention_mask[:, None].float()) * -1e9
        return torch.softmax(scores, -1) @ x


class Sound(nn.Module):
    """Frames of 20 samples every 10; `whole` tells it to look at everything that it is given, padding too."""

    def __init__(self, whole: bool = False):
        super().__init__()
        self.conv, self.whole = nn.Conv1d(1, 6, 20, 10), whole

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = torch.tanh(self.conv(audio[:, None])).transpose(1, 2)
        return x - x.mean(1, keepdim=True) if self.whole else x


def network(kind: type[nn.Module], **settings: Any) -> Any:
    torch.manual_seed(0)
    return kind(**settings).eval()


def saved(model: nn.Module, path: Path, example: tuple[Tensor, ...], names: list[str], free: bool = True) -> Path:
    """Exports as somebody would: old-style names, a free batch and, of sequences, free lengths."""
    axes = {0: "b"} if example[0].dim() == 4 else {0: "b", 1: "n"}
    with torch.no_grad(), quiet():
        torch.onnx.export(
            model,
            example,
            path,
            input_names=names,
            output_names=["features.1"],
            dynamic_axes=dict.fromkeys(names, axes) if free else None,
            dynamo=False,
        )
    return path


def recipe(folder: Path, **content: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"source": SOURCE} | content))
    return path


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (12, 10, 3)).astype(np.uint8) for _ in range(4)]


def as_read(picture: np.ndarray, reverse: bool = False) -> Tensor:
    values = (picture[..., :: -1 if reverse else 1] / np.float32(255) - 0.5) / 0.5
    return torch.from_numpy(values.transpose(2, 0, 1)[None].astype(np.float32))


@pytest.mark.parametrize("free", [True, False], ids=["any batch", "a batch of 2"])
def test_a_face_network_gives_the_vectors_of_its_file_on_every_runtime(tmp_path: Path, free: bool) -> None:
    model = network(Face)
    file = saved(model, tmp_path / "face.onnx", (torch.zeros(2, 3, 12, 10),), ["input.1"], free)
    bundle = import_file(file, recipe(tmp_path, input=FACE | {"colours": "bgr"}), tmp_path / "encoder")
    assert [v.batch for v in bundle.manifest.variants] == [0 if free else 2]
    with torch.no_grad():
        wanted = [model(as_read(p, reverse=True))[0].numpy() for p in pictures()]
    for backend in BACKENDS:
        pytest.importorskip(backend)
        with open_encoder(bundle.root, backend, batch=3) as encoding:
            found = list(encoding.encode(pictures()))
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_text_network_is_told_what_is_padding_and_its_states_are_pooled(tmp_path: Path) -> None:
    model = network(Words)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.ones(2, 6, dtype=torch.int64)
    file = saved(model, tmp_path / "words.onnx", (ids, ids, 0 * ids), names)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    said = {"input": {"kind": "text", "longest": 20, "buckets": [8, 20]}, "tokenizer": "tokens"}
    pooled = {"mean": lambda x: x.mean(0), "first": lambda x: x[0], "last": lambda x: x[-1]}
    sentences = ["a", "hello there", "a b c d e f g h i j k"]
    for pooling, by in pooled.items():
        bundle = import_file(file, recipe(tmp_path, **said, pooling=pooling, unit=True), tmp_path / pooling)
        with open_encoder(bundle.root, "onnxruntime", batch=3) as encoding:
            found = list(encoding.encode(sentences))
            tokens = [torch.from_numpy(encoding.encoder.tokenizer.encode(s))[None] for s in sentences]
        with torch.no_grad():
            states = [model(t, torch.ones_like(t), torch.zeros_like(t))[0] for t in tokens]
        wanted = [functional.normalize(by(x), dim=-1).numpy() for x in states]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert len(list((tmp_path / "mean" / "variants" / "onnx-fp32").glob("*.onnx"))) == 2


def test_an_encoder_of_text_of_before_it_said_its_tokens_keeps_the_identity_that_data_know() -> None:
    config = FileConfig(
        form="onnx",
        input={"kind": "text", "vocabulary": 9, "longest": 8},  # type: ignore[arg-type]
        takes={"ids": "values", "mask": "mask"},
        output="o",
        width=3,
        source={"name": "a"},  # type: ignore[arg-type]
    )
    assert config.identity == "d1d087ee5f9bcba031d6d60a101cffda1525ff567cca4f0eebbcf1fd48d7a6d2"


def sounds() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [(0.1 * draw.standard_normal(n)).astype(np.float32) for n in (400, 25, 133)]


def test_a_sound_network_that_knows_lengths_runs_at_several_and_one_that_does_not_fills_its_window(
    tmp_path: Path,
) -> None:
    model = network(Sound)
    file = saved(model, tmp_path / "sound.onnx", (torch.zeros(2, 100),), ["audio"])
    frames = {"kind": "sound", "rate": 100, "window": 5.0, "hop": 10, "field": 20}
    bundle = import_file(file, recipe(tmp_path, input=frames, pooling="none"), tmp_path / "encoder")
    assert [v.lengths for v in bundle.manifest.variants] == [{"frames": 50}]
    with torch.no_grad():
        wanted = [model(torch.from_numpy(s)[None])[0].numpy() for s in sounds()]
    for backend in BACKENDS:
        pytest.importorskip(backend)
        with open_encoder(bundle.root, backend) as encoding:
            for states, own in zip(encoding.encode(sounds()), wanted, strict=True):
                np.testing.assert_allclose(states, own, atol=1e-5)
    told = network(Told)
    names = ["audio", "lengths"]
    file = saved(told, tmp_path / "told.onnx", (torch.zeros(2, 100), torch.ones(2, 100).long()), names)
    frames |= {"buckets": [10, 50]}
    said = recipe(tmp_path, input=frames, takes={"lengths": "mask"}, pooling="none")
    bundle = import_file(file, said, tmp_path / "told")
    assert len(bundle.manifest.variants) == 2
    with open_encoder(bundle.root, "onnxruntime") as encoding, torch.no_grad():
        for states, sound in zip(encoding.encode(sounds()), sounds(), strict=True):
            audio = torch.from_numpy(sound)[None]
            np.testing.assert_allclose(states, told(audio, torch.ones_like(audio).long())[0].numpy(), atol=1e-5)


def test_sound_past_full_scale_stays_at_the_end_of_16_bits(tmp_path: Path) -> None:
    cast = onnx.helper.make_node("Cast", ["pcm"], ["out"], to=onnx.TensorProto.FLOAT)
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, ["b", 4])
        for name, kind in (("pcm", onnx.TensorProto.INT16), ("out", onnx.TensorProto.FLOAT))
    ]
    graph = onnx.helper.make_graph([cast], "pcm", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "pcm.onnx")
    said = recipe(tmp_path, input={"kind": "sound", "rate": 4, "window": 1.0, "scale": 32768})
    bundle = import_file(tmp_path / "pcm.onnx", said, tmp_path / "encoder")
    with open_encoder(bundle.root, "onnxruntime") as encoding:
        (found,) = encoding.encode([np.asarray([0.5, 1.0, 1.25, -1.5], np.float32)])
    assert found.tolist() == [16384, 32767, 32767, -32768]


class Means(nn.Module):
    """Pools by itself: of sound its mean and its power, over what is real if that is told."""

    def forward(self, audio: Tensor, mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(audio) if mask is None else mask.float()
        values = torch.stack([audio, audio.square()], 1)
        return (values * real[:, None]).sum(-1) / real.sum(1, keepdim=True)


@pytest.mark.parametrize("told", [True, False])
def test_a_sound_network_that_pools_reads_all_of_a_sound_and_is_told_how_much_that_is(
    tmp_path: Path, told: bool
) -> None:
    names = ["audio", "mask"][: 1 + told]
    example = (torch.zeros(2, 100), torch.ones(2, 100).long())[: 1 + told]
    file = saved(network(Means), tmp_path / "means.onnx", example, names)
    heard = {"kind": "sound", "rate": 100, "window": 5.0}
    bundle = import_file(file, recipe(tmp_path, input=heard, takes={"mask": "mask"} if told else {}), tmp_path / "made")
    things = [*sounds(), (0.1 * np.random.default_rng(1).standard_normal(900)).astype(np.float32)]
    with open_encoder(bundle.root, "onnxruntime") as encoding:
        found = list(encoding.encode(things))
    for sound, vector in zip(things, found, strict=True):
        windows = [sound[:500], sound[500:]] if len(sound) > 500 else [sound]
        filled = [w if told else np.pad(w, (0, 500 - len(w))) for w in windows]
        wanted = np.average([[w.mean(), (w**2).mean()] for w in filled], axis=0, weights=[len(w) for w in windows])
        np.testing.assert_allclose(vector, wanted, atol=1e-6)


class MeanFrame(nn.Module):
    """Of a spectrogram the mean of the real frames, and how many it is told there are."""

    def forward(self, mel: Tensor, mask: Tensor, length: Tensor) -> Tensor:
        real = mask.float()
        return torch.cat([(mel * real[:, None]).sum(-1) / real.sum(1, keepdim=True), length.reshape(-1, 1).float()], 1)


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_a_network_of_spectrograms_is_told_how_many_frames_are_real(tmp_path: Path, form: str) -> None:
    model, names = network(MeanFrame), ["mel", "mask", "length"]
    example = (torch.zeros(2, 8, 100), torch.ones(2, 100).long(), torch.full((2, 1), 100))
    file = tmp_path / "mean.pt"
    if form == "onnx":
        file = saved(model, tmp_path / "mean.onnx", example, names, free=False)
    else:
        torch.jit.save(torch.jit.trace(model, example), file)
    heard = {"kind": "sound", "form": "log_mel", "window": 1.0, "mels": 8}
    said = recipe(tmp_path, input=heard, takes={"mask": "mask", "length": "lengths"})
    bundle = import_file(file, said, tmp_path / "encoder", trust=form == "torchscript")
    sound = (0.1 * np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    with open_encoder(bundle.root, trust=form == "torchscript") as encoding:
        (found,) = encoding.encode([sound])
    wanted = LogMel(16000, 8)(np.pad(sound, (0, 11000)))[:32].mean(axis=0)
    np.testing.assert_allclose(found, [*wanted, 32], atol=1e-5)


class Told(Sound):
    """Takes the mean of the real samples away first."""

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> Tensor:
        assert lengths is not None
        real = lengths.float()
        return super().forward((audio - (audio * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)) * real)


def test_a_file_whose_features_depend_on_padding_or_neighbours_is_refused(tmp_path: Path) -> None:
    file = saved(network(Sound, whole=True), tmp_path / "a.onnx", (torch.zeros(2, 100), torch.ones(2)), ["audio"])
    frames = {"kind": "sound", "rate": 100, "window": 5.0, "hop": 10, "field": 20}
    assert import_file(file, recipe(tmp_path, input=frames), tmp_path / "window")
    model = Ignoring()
    file = saved(model, tmp_path / "b.onnx", (torch.zeros(2, 100), torch.ones(2, 100).long()), ["audio", "mask"])
    said = recipe(tmp_path, input=frames, takes={"mask": "mask"}, pooling="none")
    with pytest.raises(ParityError, match=r"gives an item other features, by \d.*, with other values in its padding"):
        import_file(file, said, tmp_path / "padding")
    file = saved(Neighbours(), tmp_path / "c.onnx", (torch.zeros(2, 3, 12, 10),), ["x"])
    with pytest.raises(ParityError, match="with other items beside it"):
        import_file(file, recipe(tmp_path, input=FACE), tmp_path / "beside")
    assert not (tmp_path / "beside" / "bundle.json").exists()


class Ignoring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sound = network(Sound, whole=True)

    def forward(self, audio: Tensor, mask: Tensor) -> Tensor:
        return self.sound(audio) + 0 * mask.float().mean()


class Neighbours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) - x.mean()


def test_a_torchscript_file_is_held_against_the_table_of_programs(tmp_path: Path) -> None:
    model = network(Face)
    traced = torch.jit.trace(model, torch.zeros(2, 3, 12, 10))
    torch.jit.save(torch.jit.freeze(traced), tmp_path / "frozen.pt")
    torch.jit.save(traced, tmp_path / "whole.pt")
    said = recipe(tmp_path, input=FACE)
    with torch.no_grad():
        wanted = [model(as_read(p))[0].numpy() for p in pictures()]
    with pytest.raises(UntrustedError, match=r"whole\.pt was not loaded"):
        import_file(tmp_path / "whole.pt", said, tmp_path / "whole")
    made = [
        import_file(tmp_path / "frozen.pt", said, tmp_path / "frozen"),
        import_file(tmp_path / "whole.pt", said, tmp_path / "whole", trust=True),
    ]
    for bundle in made:
        # It is nobody's export: what runs it asks the table every time.
        assert [v.mac for v in bundle.manifest.variants] == [""]
        with open_encoder(bundle.root, "torchscript", batch=3) as encoding:
            np.testing.assert_allclose(list(encoding.encode(pictures())), wanted, atol=1e-6)
    for backend, precision in (("torch", "fp32"), ("onnxruntime", "int8"), ("openvino", "bf16")):
        with pytest.raises(
            UsageError, match=rf"{backend} runs none of them: pass --runtime with one of \['torchscript'"
        ):
            open_encoder(made[0].root, backend, precision=precision)
    with pytest.raises(UnsupportedError, match="runtime torchscript does not run int8 on cpu"):
        open_encoder(made[0].root, "torchscript", precision="int8")
    for precision, problem in (("int8", "is a program of TorchScript, which nothing rewrites"), ("bf16", "of an ONNX")):
        with pytest.raises(UnsupportedError, match=problem):
            export_variant(made[0], "onnx", made[0].manifest.contract.buckets[0], precision=precision)


def test_a_file_that_is_not_what_its_recipe_says_is_named(tmp_path: Path) -> None:
    file = saved(network(Face), tmp_path / "face.onnx", (torch.zeros(2, 3, 12, 10),), ["x"])

    def problem(kind: type[Exception], words: str, path: Path = file, **content: Any) -> None:
        with pytest.raises(kind, match=words):
            import_file(path, recipe(tmp_path, **{"input": FACE} | content), tmp_path / "encoder")
        assert not (tmp_path / "encoder" / "bundle.json").exists()

    problem(
        UsageError,
        r"takes items of \[3, 12, 10\], by the recipe they are \[3, 10, 12\]",
        input=FACE | {"height": 10, "width": 12},
    )
    problem(UsageError, r"takes names 'y', the inputs of .* are \['x'\]", takes={"y": "mask"})
    problem(UsageError, r"output is 'y', those of .* are \['features\.1'\]", output="y")
    problem(UsageError, "Unable to extract tag", input={"height": 3})
    problem(UsageError, "of whole frames of 160", input={"kind": "sound", "form": "log_mel", "window": 1.0, "hop": 400})
    problem(UsageError, r"input\.sound\.window.*'5 s'", input={"kind": "sound", "window": "5 s"})
    problem(UsageError, "it is another file", source=SOURCE | {"sha256": "0" * 64})
    problem(
        InputError, "is not a valid ONNX file", path=broken(file, lambda model: model.graph.node[0].input.append("?"))
    )
    problem(UnsupportedError, "has operators of my.ops, which come in a library", path=broken(file, of_a_library))


def broken(file: Path, change: Any) -> Path:
    model = onnx.load(file)
    change(model)
    path = file.with_name("changed.onnx")
    path.write_bytes(model.SerializeToString())
    return path


def test_a_face_network_of_a_file_has_reduced_precisions_behind_the_gate(tmp_path: Path, mer: Mer) -> None:
    pytest.importorskip("onnxruntime")
    file = saved(network(Face), tmp_path / "face.onnx", (torch.zeros(2, 3, 12, 10),), ["x"])
    bundle = import_file(file, recipe(tmp_path, input=FACE), tmp_path / "encoder")
    code, _, err = mer("export", bundle.root, "--precision", "int8", "--precision", "fp16", "-q")
    assert code == 0, err
    with open_encoder(bundle.root, "onnxruntime") as encoding:
        wanted = np.stack(list(encoding.encode(pictures())))
    for precision, most in (("int8", 0.2), ("fp16", 1e-2)):
        made = next(v for v in Bundle.open(bundle.root).manifest.variants if v.precision == precision)
        assert 0 < made.options["rewrite"]["gate"]["vector relative"] < most
        with open_encoder(bundle.root, "onnxruntime", precision=precision) as encoding:
            found = np.stack(list(encoding.encode(pictures())))
        assert 0 < np.abs(found - wanted).max() < most
    code, _, err = mer("export", bundle.root, "-q")
    assert (code, "is what its file is, in fp32: of an ONNX file other precisions are made" in err) == (7, True)


def of_a_library(model: Any) -> None:
    model.graph.node[-1].domain = "my.ops"
    model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))


def test_an_encoder_of_a_file_or_signal_is_made_by_one_command(
    tmp_path: Path, mer: Mer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert mer("encoder", "mfcc", "-o", ".")[0] == 0
    assert Encoder.open(tmp_path / "here").identity.name == "mfcc"
    file = saved(network(Face), tmp_path / "face.onnx", (torch.zeros(2, 3, 12, 10),), ["x"])
    said = recipe(tmp_path, input=FACE)
    code, out, err = mer("encoder", file, "--recipe", said, "-o", tmp_path / "face", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["name"], found["reads"], found["gives"][0]["dims"]) == ("somebody's", "picture", ["batch", 5])
    assert found["sha256"] == Encoder.open(tmp_path / "face").identity.sha256
    code, out, err = mer(
        "encoder", "mfcc", "--set", "coefficients=7", "--rate", "8000", "-o", tmp_path / "mfcc", "--json"
    )
    assert (code, json.loads(out)["gives"][0]["dims"]) == (0, ["batch", "frames", 7]), err
    code, _, err = mer("bench", tmp_path / "face", "--quiet")
    assert (code, "this bundle (file) has no weights in PyTorch" in err) == (7, True)
    code, _, err = mer("encoder", "mfcc", "--layer", "2", "-o", tmp_path / "no")
    assert (code, "--layer says nothing of a signal, which reads --pooling" in err) == (2, True)
    code, _, err = mer("encoder", tmp_path / "nothing", "-o", tmp_path / "no")
    assert (code, "no encoder can be made of" in err) == (2, True)
    for words, said in (
        (("--every", "5", "--pooling", "mean"), "every is 5, which averages states, and pooling mean: say none"),
        (("--unit",), "unit is of a vector, and pooling none gives states"),
    ):
        code, _, err = mer("encoder", "mfcc", *words, "-o", tmp_path / "no")
        assert (code, said in err, (tmp_path / "no").exists()) == (2, True, False)
