"""The networks of mtee: published sizes, strict loading, and answers that depend on the utterance alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mtee_bundles as tiny
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mer_export import registry
from mer_export.bundle import WEIGHTS
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import InputError, UsageError
from mer_export.models.mtee.config import EMOTIONS
from mer_export.weights import bundle_model, export_weights, import_weights, load_from_bundle

SYSTEM = registry.get("mtee")
TABLE = registry.resolve(SYSTEM.weights)
SHAPES = Path(__file__).parent / "golden" / "data" / "mtee" / "full_size_state_dict_shapes.json"
FOUR = ["neutral", "happy", "sad", "angry"]
PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    "eea": ({}, "eea mosei_emo README (300 200 100, 2 layers, bi, tav)"),
    "ef": ({"model": "rnn", "labels": FOUR}, "rnn ef README iemocap (hidden-size 300, 2 layers, bi)"),
    "lf": ({"model": "rnn", "fusion": "lf", "labels": FOUR}, "rnn lf README iemocap (300 200 100, 2 layers, bi)"),
    "mult": ({"model": "mult", "labels": FOUR}, "mult iemocap"),
    "transformer": (
        {"model": "transformer", "task": "regression", "labels": ["sentiment"]},
        "transformer",
    ),
}
PARAMETERS = {
    "eea": ({}, 5_455_903),
    "rnn_ef": ({"model": "rnn", "labels": FOUR}, 3_873_604),
    "rnn_lf": ({"model": "rnn", "fusion": "lf", "labels": FOUR}, 5_370_404),
    "rnn_eflf": ({"model": "rnn", "fusion": "eflf", "labels": FOUR}, 10_861_304),
    "mult": ({"model": "mult", "labels": FOUR}, 1_579_964),
    "transformer": ({"model": "transformer", "task": "regression", "labels": ["sentiment"]}, 3_123_873),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_networks_have_their_published_size(name: str) -> None:
    values, count = PARAMETERS[name]
    model = SYSTEM.build(SYSTEM.parse(values))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_entry_of_a_full_size_checkpoint_is_accounted_for(name: str) -> None:
    values, key = PUBLISHED[name]
    config = SYSTEM.parse(values)
    state = {n: torch.zeros(shape) for n, shape in json.loads(SHAPES.read_text())[key].items()}
    model = SYSTEM.build(config)
    report = import_weights(model, state, TABLE, config)
    assert report["own"] == 0
    assert {n: tuple(t.shape) for n, t in export_weights(model, TABLE, config).items()} == {
        n: tuple(t.shape) for n, t in state.items()
    }


def run(model: torch.nn.Module, contract: Contract, items: list[Sample], more: int = 0, noise: bool = False) -> Any:
    """Logits of one batch, padded by `more` steps, which may hold noise."""
    real = [s.lengths(contract) for s in items]
    lengths = {
        d: max(max(r[d] for r in real), contract.shortest.get(d, 1)) + (more if d != EMOTIONS else 0)
        for d in contract.sequence_dims
    }
    arrays = collate(items, contract, lengths)
    if noise:
        draw = np.random.default_rng(1)
        for spec in contract.features:
            for row, sample, own in zip(arrays[spec.name], items, real, strict=True):
                steps = own[spec.dims[1]] if spec.name in sample.inputs else 0
                row[steps:] = 10 * draw.standard_normal(row[steps:].shape)
    with torch.no_grad():
        return model(**{n: torch.from_numpy(a) for n, a in arrays.items()}).numpy()


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_padding_and_neighbours_never_change_an_answer(name: str) -> None:
    config = tiny.config_of(name)
    model, contract, items = tiny.randomised(config), tiny.contract_of(config), tiny.make_samples(config)
    alone = np.concatenate([run(model, contract, [s]) for s in items])
    assert np.isfinite(alone).all()
    assert not np.allclose(alone[0], alone[3], atol=1e-3), "the test must be able to see a difference"
    if config.fill is None:
        # Fused networks read the zeros of a missing modality, the others nothing of it.
        spoilt = [s for s in items if len(s.inputs) == len(config.used) or not config.fused]
        kept = [i for i, s in enumerate(items) if s in spoilt]
        assert np.allclose(run(model, contract, spoilt, more=3, noise=True), alone[kept], atol=1e-5)
    order = [5, 2, 0, 7, 1, 4, 6, 3]
    assert np.allclose(run(model, contract, [items[i] for i in order]), alone[order], atol=1e-5)


@pytest.mark.parametrize("name", ["eea", "eea_unaligned", "rnn_lf", "mult", "transformer"])
def test_every_set_of_missing_modalities_gives_finite_answers(name: str) -> None:
    config = tiny.config_of(name)
    model, contract = tiny.randomised(config), tiny.contract_of(config)
    whole = tiny.make_samples(config)[0]
    for kept in (("text",), ("audio",), ("vision",), ("text", "audio"), ("text", "vision"), ("audio", "vision")):
        sample = Sample("s", {m: whole.inputs[m] for m in kept}, ("s",))
        assert np.isfinite(run(model, contract, [sample, whole])).all()
        assert sample.modalities(contract) == kept
    with pytest.raises(InputError, match="at least one modality"):
        collate([Sample("s", {}, ("s",))], contract)


def test_a_missing_modality_adds_nothing_to_the_score_of_emotion_embeddings() -> None:
    config = tiny.config_of("eea")
    model, contract = tiny.randomised(config), tiny.contract_of(config)
    sample = tiny.make_samples(config)[0]
    without = Sample("s", {m: x for m, x in sample.inputs.items() if m != "audio"}, ("s",))
    given = {n: torch.from_numpy(a) for n, a in collate([without], contract).items()}
    with torch.no_grad():
        queries = model.queries(given)
    assert not queries["audio"][0].any()
    assert not queries["audio"][1].any()
    assert queries["text"][0].any()


def test_emotions_are_data_and_each_is_scored_on_its_own() -> None:
    config = tiny.config_of("eea")
    model, contract, items = tiny.randomised(config), tiny.contract_of(config), tiny.make_samples(config)
    before = run(model, contract, items)
    rows = contract.shared[EMOTIONS]
    more = contract.with_shared(EMOTIONS, {"new": tuple([0.5] * tiny.WORDS), **dict(reversed(rows.items()))})
    after = run(model, more, items)
    assert after.shape == (len(items), 4)
    assert np.allclose(after[:, 1:], before[:, ::-1], atol=1e-6)
    with pytest.raises(InputError, match="'new' has 2 values, the model was made for 6"):
        contract.with_shared(EMOTIONS, {"new": (1.0, 2.0)})
    with pytest.raises(UsageError, match="no shared input 'words'"):
        contract.with_shared("words", {"new": (1.0, 2.0)})


def test_filled_sequences_are_read_as_the_authors_files_hold_them() -> None:
    short = tiny.make_samples(tiny.config_of("eea"))[0]
    for side in ("left", "right"):
        values = tiny.BASE | {"fill": 9, "fill_side": side, "buckets": [9]}
        config = SYSTEM.parse(values)
        model, contract = tiny.randomised(config), tiny.contract_of(config)
        assert short.lengths(contract)["steps"] == 9
        padding = np.zeros((9 - len(short.inputs["text"]), 6), dtype=np.float32)
        inputs = {}
        for m, x in short.inputs.items():
            zeros = np.zeros((len(padding), x.shape[1]), dtype=np.float32)
            inputs[m] = np.concatenate([zeros, x] if side == "left" else [x, zeros])
        whole = Sample("w", inputs, ("w",))
        assert np.array_equal(run(model, contract, [short]), run(model, contract, [whole]))
        arrays = collate([short], contract)
        assert np.array_equal(arrays["text"][0], inputs["text"])
        assert arrays["text_lengths"].tolist() == [9]


def test_a_checkpoint_of_other_emotions_and_modalities_loads_as_the_original_does() -> None:
    config = tiny.config_of("eea")
    model = tiny.randomised(config)
    state = export_weights(model, TABLE, config) | {"textEmoEmbs.weight": torch.zeros(7, tiny.WORDS)}
    subset = SYSTEM.parse(tiny.BASE | {"modalities": ["vision", "text"]})
    loaded = SYSTEM.build(subset)
    import_weights(loaded, state, TABLE, subset)
    assert loaded.modality_weight.tolist() == [0.5, 0.5]
    with pytest.raises(UsageError, match=r"textEmoEmbs.weight is \(7, 5\)"):
        import_weights(loaded, state | {"textEmoEmbs.weight": torch.zeros(7, 5)}, TABLE, subset)


def test_a_head_without_the_unseen_label_gets_a_row_that_says_nothing() -> None:
    four = SYSTEM.parse(tiny.BASE | {"model": "rnn", "labels": ["a", "b", "c", "d"], "unseen": 1})
    three = SYSTEM.parse(tiny.BASE | {"model": "rnn", "labels": ["a", "c", "d"]})
    source, target = tiny.randomised(three), SYSTEM.build(four)
    import_weights(target, export_weights(source, TABLE, three), TABLE, four)
    items = tiny.make_samples(three)
    before, after = run(source, SYSTEM.contract(three), items), run(target, SYSTEM.contract(four), items)
    assert np.allclose(after[:, [0, 2, 3]], before)
    assert not after[:, 1].any()


def test_a_bundle_of_mult_from_release_0_1_loads_under_its_names_of_then(tmp_path: Path) -> None:
    bundle = tiny.make_bundle(tmp_path / "b", "mult")
    now = bundle_model(bundle).state_dict()
    parts = {"project": "qkv", "expand": "fc1", "contract": "fc2", "attention_norm": "norms.0", "norm": "norms.1"}
    layer = re.compile(r"(.*\.layers\.\d+\.)(\w+)(\.\w+)")
    then = {layer.sub(lambda m: m[1] + parts.get(m[2], m[2]) + m[3], n): t.clone() for n, t in now.items()}
    assert "cross.text_with_audio.layers.0.qkv.weight" in then
    assert sum(n in now for n in then) == len(now) - 10 * (6 * 1 + 3 * 3)
    with bundle.commit() as change:
        save_file(then, change.file(WEIGHTS))
    loaded, started = bundle_model(bundle), SYSTEM.build(tiny.config_of("mult"))
    load_from_bundle(started, bundle.root)
    for model in (loaded, started):
        assert all(torch.equal(t, now[n]) for n, t in model.state_dict().items())


def test_the_transformer_of_the_original_depends_on_its_batch_and_the_exported_one_does_not() -> None:
    config = tiny.config_of("transformer")
    model, contract = tiny.randomised(config), SYSTEM.contract(config)
    items = [s for s in tiny.make_samples(config, 12) if len(s.inputs["text"]) == 5][:4]
    arrays = {n: torch.from_numpy(a) for n, a in collate(items, contract).items()}
    with torch.no_grad():
        together = model.in_batch(**arrays).numpy()
        alone = np.concatenate([model.in_batch(**{n: a[i : i + 1] for n, a in arrays.items()}) for i in range(4)])
    assert np.abs(together - alone).max() > 1e-3
    assert np.allclose(alone, run(model, contract, items), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model": "mult", "modalities": ["text"], "mult": {"streams": ["audio"]}}, "mult.streams are"),
        ({"model": "rnn", "fusion": "ef", "aligned": False}, "it needs aligned data"),
        ({"labels": ["a", "a"]}, "labels repeat"),
        ({"thresholds": [0.5]}, "one value for each of 6 labels"),
        ({"task": "regression"}, "regression has one label"),
        ({"model": "mult", "mult": {"streams": ["text", "audio"]}}, "all three modalities or one"),
        ({"model": "mult", "mult": {"heads": 7}}, "is not a multiple of 7 heads"),
        ({"model": "mult", "buckets": [4]}, "audio length must be 5"),
        ({"aligned": False, "buckets": [{"text": 20}]}, "audio length must be 1"),
        ({"fill": {"text": 20}}, "one length"),
        ({"unseen": 2}, "unseen is the index of a label of rnn or mult"),
    ],
)
def test_an_impossible_network_is_refused_with_the_reason(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        SYSTEM.parse(values)


def test_sequences_shorter_than_the_convolutions_are_refused() -> None:
    contract = SYSTEM.contract(tiny.config_of("mult"))
    inputs = {m: np.zeros((4, n), dtype=np.float32) for m, n in tiny.WIDTHS.items()}
    with pytest.raises(InputError, match="4 audio_len are fewer than the 5"):
        collate([Sample("s", inputs, ("s",))], contract)
