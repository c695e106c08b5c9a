"""Encoders of `transformers` folders: the package's own states, whatever the padding, neighbours and runtime."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Mer

from benchmarks.small_encoders import KINDS, PICTURES, SOUNDS, raw_things, save_folder
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.cuda import find_gpu
from mer_export.encoders.encoder import Encoder
from mer_export.encoders.log_mel import LogMel
from mer_export.errors import BundleError, InputError, NotAvailableError, UnsupportedError, UsageError
from mer_export.exporters import export_variant
from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder, read_folder
from runtimes.backends.session import SessionOptions
from runtimes.encode import open_encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROOF = 1e-5
EXPORTED = ("deberta-v2", "wav2vec2", "whisper", "clip")
"""One of each form; `python -m benchmarks.encoders` exports every kind."""


def made(kind: str, folder: Path, **wanted: Any) -> tuple[Any, Path]:
    """The package's network, and the encoder made of its folder."""
    model = save_folder(kind, folder / "source")
    if kind in SOUNDS:
        wanted.setdefault("window", 1.0)
    import_folder(folder / "source", folder / "encoder", Wanted(**wanted))
    return model, folder / "encoder"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(PICTURES)))
def test_states_are_those_of_the_package_for_every_item_alone_and_unpadded(kind: str, tmp_path: Path) -> None:
    model, folder = made(kind, tmp_path, pooling="none")
    things = raw_things(kind)
    with open_encoder(folder, "torch") as encoding:
        found = list(encoding.encode(things))
    for thing, states in zip(things, found, strict=True):
        with torch.no_grad():
            if kind == "whisper":
                wanted = whisper_states(model, thing)
            elif kind in SOUNDS:
                said = (thing - thing.mean()) / np.sqrt(thing.var() + 1e-7) if kind == "wav2vec2-large" else thing
                wanted = model(torch.from_numpy(said)[None])[0][0].numpy()
            else:
                ids = encoding.encoder.tokenizer.encode(thing)
                wanted = model(input_ids=torch.from_numpy(ids)[None])[0][0].numpy()
        assert states.shape == wanted.shape
        assert np.abs(states - wanted).max() <= PROOF


def whisper_states(model: Any, sound: np.ndarray) -> np.ndarray:
    """The package's states in a window of one second, of which the sound has so many of its own."""
    encoder = model.encoder
    encoder.config.max_source_positions = 50
    rows = encoder.embed_positions.weight[:50].clone()
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(rows)
    extract = transformers.WhisperFeatureExtractor(feature_size=80)
    mel = extract(sound, sampling_rate=16000, max_length=16000, return_tensors="pt")["input_features"]
    return encoder(mel)[0][0, : -(-len(sound) // 320)].numpy()


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_prepared_as_the_packages_own_processor_does(kind: str, tmp_path: Path) -> None:
    model, folder = made(kind, tmp_path)
    prepare = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3)
    things = raw_things(kind)
    with open_encoder(folder, "torch") as encoding:
        found = list(encoding.encode(things))
    for thing, vector in zip(things, found, strict=True):
        pixels = prepare(thing, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            wanted = model(pixel_values=pixels)[0][0, 0].numpy()
        assert np.abs(vector - wanted).max() <= 2e-2, "the package resizes with another library: half a grey step"


def test_a_section_that_leaves_out_the_packages_defaults_has_them(tmp_path: Path) -> None:
    """As the published folders of SigLIP describe their vision tower."""
    said = {"num_hidden_layers": 1, "intermediate_size": 16, "image_size": 32}
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**said))
    model.save_pretrained(tmp_path)
    described = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model", **said}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    config, _ = read_folder(tmp_path, Wanted())
    assert (config.width, config.depth, config.input.height) == (768, 1, 32)


CLIP = {"crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 32}
"""What the published folder of CLIP says of preprocessing, in the form of before sizes had names."""


def test_one_number_of_a_size_is_the_shorter_side_of_those_kinds_where_the_package_has_it_so(tmp_path: Path) -> None:
    package = {"clip": transformers.CLIPImageProcessor, "vit": transformers.ViTImageProcessor}
    picture = raw_things("clip")[0]
    for kind, prepare in package.items():
        save_folder(kind, tmp_path / kind)
        (tmp_path / kind / "preprocessor_config.json").write_text(json.dumps(CLIP))
        found = read_folder(tmp_path / kind, Wanted())[0].input.sample("a", picture).inputs["picture"]
        said = CLIP if kind == "clip" else {n: v for n, v in CLIP.items() if "crop" not in n}
        wanted = prepare(**said, image_mean=[0.5] * 3, image_std=[0.5] * 3)(picture, return_tensors="np")
        assert np.abs(found - wanted["pixel_values"][0]).max() <= 0.1, "resized by another library"


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"resample": 5}, "resamples by filter 5"),
        ({"do_rescale": False}, "says do_rescale false"),
        ({"size": {"longest_edge": 64}}, "say its shortest_edge"),
    ],
)
def test_preprocessing_that_is_not_done_here_is_refused(said: dict[str, Any], named: str, tmp_path: Path) -> None:
    save_folder("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UnsupportedError, match=named):
        read_folder(tmp_path, Wanted())


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    _, folder = made(request.param, tmp_path_factory.mktemp(request.param))
    bundle = Bundle.open(folder)
    export_variant(bundle, "onnx", bundle.manifest.contract.buckets[-1])
    return request.param, folder


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_exported_encoder_gives_the_vectors_of_pytorch_in_any_batch(
    exported: tuple[str, Path], backend: str
) -> None:
    pytest.importorskip(backend)
    kind, folder = exported
    things = raw_things(kind)
    with open_encoder(folder, "torch") as reference, open_encoder(folder, backend, batch=3) as encoding:
        wanted, found = list(reference.encode(things)), list(encoding.encode(things))
        alone = [next(iter(encoding.encode([thing]))) for thing in things]
    assert max(np.abs(a - b).max() for a, b in zip(wanted, found, strict=True)) <= PROOF
    assert max(np.abs(a - b).max() for a, b in zip(alone, found, strict=True)) <= 1e-6


def test_an_encoder_is_replaced_whole_or_stays_as_it_is(mer: Mer, tmp_path: Path) -> None:
    save_folder("bert", tmp_path / "source")
    words = ["encoder", tmp_path / "source", "-o", tmp_path / "made", "--length", "8", "-q"]
    code, _, problem = mer(*words)
    assert code == 0, problem
    before = {p: p.read_bytes() for p in sorted((tmp_path / "made").rglob("*")) if p.is_file()}
    code, _, problem = mer(*words, "--force", "--precision", "bf16")
    assert (code, "format onnx has no precision 'bf16'" in problem) == (7, True)
    assert {p: p.read_bytes() for p in sorted((tmp_path / "made").rglob("*")) if p.is_file()} == before
    assert mer(*words, "--force", "--layer", "0")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "source"]
    bundle = Bundle.open(tmp_path / "made")
    bundle.verify()
    assert (Encoder.of(bundle).config.model_dump()["layers"], len(bundle.manifest.variants)) == ((0,), 1)


def test_a_reduced_precision_passes_the_gate_and_says_what_it_costs(exported: tuple[str, Path]) -> None:
    kind, folder = exported
    bundle = Bundle.open(folder)
    variant = export_variant(bundle, "onnx", bundle.manifest.contract.buckets[-1], precision="int8")
    assert 0 < variant.options["rewrite"]["gate"]["vector relative"] < 0.2
    with open_encoder(folder, "onnxruntime", precision="int8") as encoding:
        assert next(iter(encoding.encode(raw_things(kind)[:1]))).shape == (32,)


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="tensorrt-rtx is not installed")
def test_an_engine_is_built_of_an_encoder_without_a_gpu(tmp_path: Path) -> None:
    _, folder = made("bert", tmp_path, longest=8, buckets=(8,))
    bundle = Bundle.open(folder)
    variant = export_variant(bundle, "tensorrt", bundle.manifest.contract.buckets[-1])
    assert (variant.batch, variant.options["engine_key"]["gpu"]) == (1, "any")
    assert bundle.variant_files(variant).stat().st_size > 1000
    if find_gpu() is None:
        with open_encoder(folder, "tensorrt", options=SessionOptions(device="cuda")) as encoding:
            answers = encoding.encode(["a"])
            with pytest.raises(NotAvailableError, match="GPU"):
                next(answers)


def test_layers_stand_side_by_side_and_those_after_the_last_one_are_not_kept(tmp_path: Path) -> None:
    model, folder = made("bert", tmp_path, pooling="none", layers=(0, 1))
    (text, *_) = raw_things("bert")
    with open_encoder(folder, "torch") as encoding:
        (states,) = encoding.encode([text])
        ids = torch.from_numpy(encoding.encoder.tokenizer.encode(text))[None]
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    wanted = torch.cat([hidden[0], hidden[1]], dim=-1)[0].numpy()
    assert np.abs(states - wanted).max() <= PROOF


def test_a_long_sound_is_read_window_by_window_and_its_vector_is_of_all(tmp_path: Path) -> None:
    _, folder = made("whisper", tmp_path, pooling="none")
    _, pooled = made("whisper", tmp_path / "pooled")
    sound = (0.1 * np.random.default_rng(1).standard_normal(36000)).astype(np.float32)
    with open_encoder(folder, "torch") as states, open_encoder(pooled, "torch") as vectors:
        (whole,), parts = states.encode([sound]), list(states.encode([sound[:16000], sound[16000:32000]]))
        (vector,) = vectors.encode([sound])
    assert whole.shape == (113, 32)
    assert np.array_equal(whole[:100], np.concatenate(parts))
    assert np.abs(vector - whole.mean(axis=0)).max() <= PROOF
    encoder = Encoder.open(pooled)
    samples, rows = encoder.samples(sound), [np.full((1, 32), n, np.float32) for n in (1, 2, -3)]
    for said, wanted in (({"pooling": "first"}, 1), ({"pooling": "last"}, -3), ({"unit": True}, 32**-0.5)):
        of_windows = Encoder(encoder.bundle, encoder.config.model_copy(update=said)).join(rows, samples)
        assert of_windows == pytest.approx(np.full(32, wanted))


def test_states_are_averaged_into_longer_steps(tmp_path: Path) -> None:
    _, fine = made("whisper", tmp_path / "fine", pooling="none")
    _, coarse = made("whisper", tmp_path / "coarse", pooling="none", every=10)
    things = raw_things("whisper")[:2]
    with open_encoder(fine, "torch") as a, open_encoder(coarse, "torch") as b:
        for states, steps in zip(a.encode(things), b.encode(things), strict=True):
            wanted = [states[i : i + 10].mean(axis=0) for i in range(0, len(states), 10)]
            assert np.allclose(steps, wanted, atol=1e-6)


def test_window_layer_and_pooling_are_part_of_what_an_encoder_is(tmp_path: Path) -> None:
    save_folder("whisper", tmp_path / "source")
    ways = [Wanted(window=1.0), Wanted(window=1.5), Wanted(window=1.0, layers=(1,)), Wanted(window=1.0, pooling="none")]
    ways.append(Wanted(window=1.0, name="another name", licence="MIT"))
    identities = [read_folder(tmp_path / "source", wanted)[0].identity for wanted in ways]
    assert len(set(identities)) == len(ways) - 1
    assert identities[-1] == identities[0], "what somebody calls it changes no feature"


def test_the_tokens_of_a_text_are_part_of_what_its_encoder_is(tmp_path: Path) -> None:
    save_folder("bert", tmp_path / "source")
    identities = []
    for said in ({}, {"do_lower_case": False}, {"model_max_length": 9}):
        (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(said))
        identities.append(read_folder(tmp_path / "source", Wanted())[0].identity)
    assert identities[0] != identities[1], "it tells Hello from hello"
    assert identities[0] == identities[2], "what changes no token changes no feature"


def test_a_folder_without_the_encoders_weights_is_refused_and_no_random_encoder_made(tmp_path: Path) -> None:
    save_folder("bert", tmp_path / "source")
    description = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps(description | {"num_hidden_layers": 3}))
    with pytest.raises(UsageError, match=r"does not hold the weights of the bert .* missing encoder.layer.2"):
        import_folder(tmp_path / "source", tmp_path / "encoder")
    (tmp_path / "source" / "config.json").write_text(json.dumps(description | {"num_hidden_layers": 1}))
    with pytest.raises(UsageError, match=r"unexpected encoder.layer.1"):
        import_folder(tmp_path / "source", tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"hidden_act": "gelu_of_mine"}, "gelu_of_mine"),
        ({"num_hidden_layers": "two"}, "'two'"),
        ({"vocab_size": None}, "TypeError"),
        ({"num_attention_heads": 5}, "5"),
    ],
)
def test_a_description_that_no_network_can_be_built_of_is_named(
    said: dict[str, Any], named: str, tmp_path: Path
) -> None:
    save_folder("bert", tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(description | said))
    with pytest.raises(InputError, match=rf"config.json does not describe a network that can be built: .*{named}"):
        read_folder(tmp_path, Wanted())


def test_what_cannot_be_an_encoder_is_named(tmp_path: Path) -> None:
    save_folder("bert", tmp_path / "source")
    with pytest.raises(UsageError, match=r"layers are \[7\], a bert of this size has 0..2"):
        import_folder(tmp_path / "source", tmp_path / "a", Wanted(layers=(7,)))
    for number, wanted in ((600, Wanted(longest=600)), (0, Wanted(longest=0)), (67, Wanted(buckets=(8, 67)))):
        with pytest.raises(UsageError, match=rf"reads 3..66 tokens, not {number}"):
            import_folder(tmp_path / "source", tmp_path / "a", wanted)
    save_folder("wav2vec2", tmp_path / "sound")
    save_folder("vit", tmp_path / "picture")
    for folder, wanted, said in (
        ("source", Wanted(window=5.0), "--window says nothing of a bert, which reads a text"),
        ("sound", Wanted(longest=5), "--longest says nothing of a wav2vec2, which reads a waveform"),
        ("sound", Wanted(window=0.0), "window: .*greater than 0"),
        ("sound", Wanted(window=0.01), "a window of 0.01 s at 16000 Hz has no state of 320 samples"),
        ("picture", Wanted(buckets=(5,)), "--length says nothing of a vit"),
        ("picture", Wanted(pooling="none"), "a picture has one vector"),
    ):
        with pytest.raises(UsageError, match=said):
            import_folder(tmp_path / folder, tmp_path / "a", wanted)
    (tmp_path / "source" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UnsupportedError, match="describes a 't5', encoders are taken of"):
        import_folder(tmp_path / "source", tmp_path / "a")
    with pytest.raises(InputError, match="is not a folder"):
        import_folder(tmp_path / "nothing", tmp_path / "a")


def test_an_encoder_reads_what_it_was_made_for_and_says_so_otherwise(tmp_path: Path) -> None:
    _, text = made("bert", tmp_path / "text")
    _, sound = made("whisper", tmp_path / "sound")
    with open_encoder(text, "torch") as encoding, pytest.raises(InputError, match="reads sentences"):
        list(encoding.encode([np.zeros(100, dtype=np.float32)]))
    with open_encoder(sound, "torch") as encoding, pytest.raises(InputError, match="finite samples"):
        list(encoding.encode([np.full(100, np.nan, dtype=np.float32)]))


def test_spectrograms_are_whispers() -> None:
    sound = (0.3 * np.random.default_rng(0).standard_normal(32000)).astype(np.float32)
    extract = transformers.WhisperFeatureExtractor(feature_size=80)
    wanted = extract(sound, sampling_rate=16000, max_length=32000, return_tensors="np")["input_features"][0].T
    assert np.abs(LogMel(16000, 80)(sound) - wanted).max() <= 5e-5


def test_the_weights_of_a_damaged_encoder_are_refused(exported: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = exported
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    with open_encoder(copy, "torch") as encoding, pytest.raises(BundleError, match="checksum"):
        list(encoding.encode(raw_things(exported[0])[:1]))
