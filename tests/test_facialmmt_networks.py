"""Claims about facialmmt's networks: frames, faces without a clear expression, missing modalities, the Swin tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_facialmmt import SWIN, VARIANTS, make, utterances

from mer_export import registry
from mer_export.agreement.error import output_error
from mer_export.agreement.policy import PROOF
from mer_export.data.collate import collate
from mer_export.data.media.faces import normalise
from mer_export.data.overflow import fit
from mer_export.errors import InputError, UnsupportedError, UsageError
from mer_export.exporters.encoders.make import make as make_encoder
from mer_export.models.facialmmt.fusion import select_frames
from mer_export.models.facialmmt.swin import Swin, shifted_mask, window_index
from mer_export.models.facialmmt.swin_config import SwinConfig
from mer_export.models.facialmmt.swin_names import from_timm, from_transformers, timm_names, to_timm, to_transformers
from mer_export.progress import SILENT
from mer_export.weights import bundle_model, export_weights, import_weights
from runtimes.encode import open_encoder
from train.config import load_preset

SYSTEM = registry.get("facialmmt")
TABLE = registry.resolve(SYSTEM.weights)


def run(model: torch.nn.Module, samples: list, contract, lengths=None) -> np.ndarray:
    arrays = collate(samples, contract, lengths)
    with torch.no_grad():
        return model(**{n: torch.from_numpy(a) for n, a in arrays.items()}).numpy()


def test_clear_faces_move_to_the_front_in_their_order() -> None:
    features = torch.arange(5.0)[None, :, None]
    clear = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0]])
    likely = torch.where(clear[..., None] > 0, torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    rows, kept = select_frames(features, likely, torch.tensor([[True, True, True, True, False]]), 0.6)
    assert rows[0, :, 0].tolist() == [1, 3, 0, 0, 0]
    assert kept[0].tolist() == [True, True, False, False, False]


def test_all_faces_count_where_none_is_clear() -> None:
    features = torch.randn(1, 4, 3)
    real = torch.tensor([[True, True, True, False]])
    likely = torch.full((1, 4, 2), 0.5) * real[..., None]
    rows, kept = select_frames(features, likely, real, 0.6)
    assert torch.equal(kept, real)
    assert torch.equal(rows[0, :3, :3], features[0, :3])
    assert not rows[0, 3].any()


@pytest.mark.parametrize("variant", ["fusion", "end_to_end", "vision"])
def test_padding_and_neighbours_never_change_an_answer(variant: str, tmp_path) -> None:
    bundle = make(tmp_path / "b", variant)
    contract, model = bundle.manifest.contract, bundle_model(bundle)
    samples = utterances(contract)
    alone = np.concatenate([run(model, [s], contract) for s in samples])
    together = run(model, samples, contract, contract.buckets[-1])
    assert np.abs(alone - together).max() < 1e-5


@pytest.mark.parametrize("kept", [("text",), ("audio",), ("vision",), ("text", "audio")])
def test_missing_modalities_are_finite(kept: tuple[str, ...], tmp_path) -> None:
    bundle = make(tmp_path / "b", "fusion")
    contract = bundle.manifest.contract
    sample = utterances(contract, 1)[0]
    own = {s.name for s in contract.features if s.modality in kept}
    part = type(sample)(sample.id, {n: a for n, a in sample.inputs.items() if n in own}, sample.units)
    assert np.isfinite(run(bundle_model(bundle), [part], contract)).all()


def test_an_utterance_without_faces_is_finite_in_the_vision_model(tmp_path) -> None:
    model = bundle_model(make(tmp_path / "b", "vision"))
    found = model(vision=torch.randn(1, 5, 4), vision_lengths=torch.tensor([0]))
    assert torch.isfinite(found).all()


def test_noise_moves_the_answer_and_none_is_the_default(tmp_path) -> None:
    bundle = make(tmp_path / "b", "fusion")
    contract, model = bundle.manifest.contract, bundle_model(bundle)
    sample = utterances(contract, 1)[0]
    frames = len(sample.inputs["vision"])
    silent, loud = ({**sample.inputs, "gumbel_noise": np.full((frames, 7), v, np.float32)} for v in (0.0, 1.0))
    noisy = {**sample.inputs, "gumbel_noise": np.random.default_rng(0).gumbel(size=(frames, 7)).astype(np.float32)}
    first, *others = (
        run(model, [type(sample)("a", i, ("a",))], contract) for i in (sample.inputs, silent, loud, noisy)
    )
    assert np.array_equal(first, others[0])
    # Softmax does not see what all expressions have in common.
    assert np.abs(first - others[1]).max() < 1e-5
    assert np.abs(first - others[2]).max() > 1e-4


def test_a_dialogue_longer_than_the_bucket_is_never_cut() -> None:
    contract = SYSTEM.contract(SYSTEM.parse(VARIANTS["fusion"]))
    sample = utterances(contract, 1)[0]
    with pytest.raises(InputError, match="cannot be cut: export a longer bucket with --seq-len text_len=11"):
        fit(sample, contract, {"text_len": 8, "audio_len": 6, "vision_len": 5}, "truncate")


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_weights_go_out_and_come_in_under_the_authors_names(variant: str, tmp_path) -> None:
    bundle = make(tmp_path / "b", variant)
    config = SYSTEM.parse(bundle.manifest.config)
    model = bundle_model(bundle)
    state = export_weights(model, TABLE, config)
    other = SYSTEM.build(config)
    import_weights(other, state, TABLE, config)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    del state["classifier.weight"]
    with pytest.raises(UsageError, match=r"missing classifier\.weight"):
        import_weights(other, state, TABLE, config)


def test_standardised_inputs_have_no_counterpart_in_a_checkpoint() -> None:
    config = SYSTEM.parse(VARIANTS["fusion"] | {"standardise": ["audio"]})
    with pytest.raises(UnsupportedError, match=r"leave out model\.standardise"):
        TABLE.renames(config)


def test_lengths_come_from_the_tables_of_positions() -> None:
    tables = {f"{m}_utt_transformer.position_embeddings.weight": torch.zeros(n, 8) for m, n in (("audio", 9),)}
    assert TABLE.fit({"vision_len": 3}, tables) == {"vision_len": 3, "audio_positions": 9, "audio_len": 9}
    assert TABLE.fit({"audio_len": 7}, tables)["audio_len"] == 7


def test_windows_hold_every_token_once_and_neighbours_see_each_other() -> None:
    assert sorted(window_index(8, 4, 2).tolist()) == list(range(64))
    mask = shifted_mask(8, 4, 2)
    assert not mask[0].any()
    assert (mask[3] < 0).any()


@pytest.mark.parametrize(("out", "back"), [(to_timm, from_timm), (to_transformers, from_transformers)])
def test_swin_weights_go_to_other_projects_and_back(out, back) -> None:
    config = SwinConfig(**SWIN)
    own = Swin(config).state_dict()
    assert {n: t.shape for n, t in back(out(own, config), config).items()} == {n: t.shape for n, t in own.items()}
    assert all(torch.equal(own[n], t) for n, t in back(out(own, config), config).items())
    with pytest.raises(UsageError, match="no Swin transformer of this shape"):
        back({}, config)


def test_names_in_other_projects_are_the_documented_ones() -> None:
    names = timm_names(SwinConfig(**SWIN))
    assert names["layers.0.downsample.reduction.weight"] == "layers.1.downsample.reduction.weight"
    found = to_transformers(Swin(SwinConfig(**SWIN)).state_dict(), SwinConfig(**SWIN))
    for name in (
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layers.0.blocks.1.attention.k_proj.bias",
        "encoder.layers.0.blocks.1.attention.relative_position_bias.relative_position_bias_table",
        "encoder.layers.0.blocks.0.mlp.fc1.weight",
        "encoder.layers.0.downsample.norm.weight",
        "layernorm.bias",
    ):
        assert name in found


def test_the_published_expression_model_has_the_published_number_of_parameters() -> None:
    config = SYSTEM.parse({"variant": "face", "swin": {}})
    model = SYSTEM.build(config)
    assert sum(p.numel() for p in model.parameters()) == 46_821_761
    assert sum(p.numel() for p in model.swin.parameters()) == 27_517_818 + 2 * 768
    assert config.swin.flat == 37_632


@pytest.mark.parametrize(
    ("preset", "parameters"), [("fusion", 436_294_664), ("bert", 416_076_808), ("vision", 15_757_832)]
)
def test_the_published_checkpoints_have_the_published_number_of_parameters(preset: str, parameters: int) -> None:
    config = SYSTEM.parse(load_preset(f"facialmmt/meld_{preset}").model)
    with torch.device("meta"):
        own = SYSTEM.build(config).state_dict()
    found = sum(own[o].numel() for a, o in TABLE.renames(config).items() if not a.startswith("face/"))
    found += sum(int(np.prod(shape)) for shape in TABLE.unused(config).values())
    # The tables of positions are counted apart: how long the authors' are is not known.
    if preset != "vision":
        found -= config.width * config.positions("audio")
    assert found - config.width * config.positions("vision") == parameters


@pytest.mark.parametrize(("variant", "output"), [("face", "features"), ("end_to_end", "expressions")])
def test_the_face_network_is_an_encoder_of_faces(variant: str, output: str, tmp_path: Path) -> None:
    bundle = make(tmp_path / "bundle", variant)
    whole = bundle_model(bundle)
    model = whole if variant == "face" else whole.face
    make_encoder(str(bundle.root), tmp_path / "faces", {"output": output}, False, SILENT)
    draw = np.random.default_rng(0)
    crops = [draw.integers(0, 256, (n, n, 3)).astype(np.uint8) for n in (8, 5, 11, 8)]
    images = torch.from_numpy(np.stack([normalise(c[:, :, ::-1], 8) for c in crops]))
    with torch.no_grad():
        wanted = (model if output == "expressions" else model.describe)(images).numpy()
    with open_encoder(tmp_path / "faces", "onnxruntime", batch=3) as encoding:
        found = np.stack(list(encoding.encode(crops)))
    assert output_error("vector", [wanted], [found], PROOF.atol, PROOF.rtol).agrees
    with pytest.raises(UnsupportedError, match=r"\(facialmmt fusion\) has no face network"):
        make_encoder(str(make(tmp_path / "fusion", "fusion").root), tmp_path / "no", {}, False, SILENT)
