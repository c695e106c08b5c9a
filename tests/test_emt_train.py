"""Training emt, tfr_net and mult: accumulation rules, resuming, schedule, robustness over missing rates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_emt import BERT

from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.data.open import open_corpus
from mer_export.data.samples import Sample
from mer_export.data.synthetic import synthesise
from mer_export.errors import UsageError
from runtimes.predict.predictor import Predictor
from runtimes.predict.robustness import RobustnessReport, parse_rates, run_robustness
from train.config import PRESETS, TrainConfig, load_preset
from train.fit import fit
from train.systems.emt.protocol import EmtProtocol
from train.systems.emt.settings import EmtSettings
from train.updates import Updates

DATA = {"text_len": 12, "audio_len": 9, "vision_len": 7, "words": 7, "text_noise": 0.3}
ARRAYS = "{text_len: 12, audio_len: 9, vision_len: 7}"
MODEL = [f"model.bert={json.dumps(BERT)}", "device=cpu", "precision=fp32", f"model.buckets=[{ARRAYS}]"]
MODEL += ["protocol.text_encoder=random"]
SETS = {
    "emt": [*MODEL, "model.width=8", "model.head_width=8", "protocol.accumulate=2"],
    "tfr_net": [
        *MODEL,
        f"model.arrays={ARRAYS}",
        "model.width=8",
        "model.heads=2",
        "model.levels=1",
        "model.fusion_layers=1",
    ],
    "mult": [*MODEL, f"model.arrays={ARRAYS}", "model.width=8", "model.heads=2", "model.levels=1"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mosi")
    synthesise("emt", "mosi", out, dialogues=60, seed=2, **DATA)
    return out


def small(system: str, *sets: str) -> TrainConfig:
    return load_preset(f"{system}/mosi", [*SETS[system], "protocol.missing=0.2", "epochs=2", "batch=8", *sets])


@pytest.mark.parametrize("system", SETS)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(system: str, data: Path, tmp_path: Path) -> None:
    whole = fit(small(system), data, tmp_path / "whole", quiet=True)
    import train.fit as module

    class Stop(Exception):
        pass

    def stop(self: object) -> bool:
        if getattr(self, "state").epoch == 1:  # noqa: B009
            raise Stop
        return False

    original = module.Run._out_of_patience
    module.Run._out_of_patience = stop  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises(Stop):
            fit(small(system), data, tmp_path / "parts", quiet=True)
    finally:
        module.Run._out_of_patience = original  # type: ignore[method-assign]
    parts = fit(small(system), data, tmp_path / "parts", quiet=True)
    a, b = (load_file(x.root / WEIGHTS) for x in (whole, parts))
    assert all(np.array_equal(a[n], b[n]) for n in a)
    assert {"mae", "corr", "non0_acc_2"} <= set(whole.manifest.provenance["result"])


def test_gradients_add_up_and_leftovers_are_dropped() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    updates = Updates(torch.optim.SGD([weight], lr=1.0), every=2)
    seen = []
    for batch in range(5):
        updates.before(batch)
        weight.backward(torch.tensor(float(batch + 1)))
        updates.after(batch)
        seen.append(-weight.item())
    assert seen == [0, 3, 3, 10, 10]


def test_the_baselines_apply_the_running_sum_and_the_last_one_twice() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    updates = Updates(torch.optim.SGD([weight], lr=1.0), every=2, rule="each", clip_value=2.5)
    seen = []
    for batch in range(3):
        updates.before(batch)
        weight.backward(torch.tensor(1.0 if batch < 2 else 9.0))
        updates.after(batch)
        seen.append(-weight.item())
    assert seen == [1, 1 + 2 + 2, 5 + 2.5]


def test_the_text_encoder_of_mult_is_not_trained(data: Path, tmp_path: Path) -> None:
    one, two = (
        fit(small("mult", f"epochs={n}", "keep.rule=last"), data, tmp_path / str(n), quiet=True) for n in (1, 2)
    )
    a, b = (load_file(x.root / WEIGHTS) for x in (one, two))
    frozen = {n for n in a if n.startswith("bert.")}
    assert all(np.array_equal(a[n], b[n]) for n in frozen)
    assert not all(np.array_equal(a[n], b[n]) for n in set(a) - frozen)


def test_a_missing_token_becomes_the_unknown_token_of_the_text_encoder(data: Path) -> None:
    config = small("emt", "protocol.missing=1.0", "model.bert.unknown_token=7")
    corpus, model = open_corpus(data, config.data), registry.get("emt").parse(config.model)
    protocol = EmtProtocol(EmtSettings.model_validate(config.protocol))
    for sample in protocol.views(corpus, model):
        assert set(sample.inputs["input_ids"][1:-1].tolist()) <= {7}


def test_one_rate_stands_for_all_modalities() -> None:
    for name in [p for p in PRESETS if p.split("/")[0] in SETS]:
        rule = load_preset(name, ["protocol.missing=0.3"]).protocol["missing"]
        assert (rule["text"], rule["audio"], rule["vision"]) == (0.3, 0.3, 0.3)
    rule = load_preset("emt/mosi", ["protocol.missing={audio: 0.5}"]).protocol["missing"]
    assert (rule["text"], rule["audio"]) == (0.0, 0.5)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_one_item_left_over_joins_the_batch_before_it(batches: int) -> None:
    items = [Sample(str(i), {}, (str(i),)) for i in range(8 * batches + 1)]
    found = EmtProtocol(EmtSettings(text_encoder="random")).batches(items, 8)
    assert [len(b) for b in found] == [8] * (batches - 1) + [9]
    assert [s.id for b in found for s in b] == [s.id for s in items]


def test_rates_are_read_as_ranges_single_values_and_triples() -> None:
    assert [r.name for r in parse_rates("0.0:1.0:0.5")] == ["0", "0.5", "1"]
    assert len(parse_rates("0.0:1.0:0.1")) == 11
    assert parse_rates("0.1,0.2,0.3")[0].vision == 0.3
    for wrong in ("x", "1.5", "0.1,0.2", "0:1:0", "1:0:0.1", "", "0:0.8:0.3", "0:1:1e-9"):
        with pytest.raises(UsageError, match="--missing-rate"):
            parse_rates(wrong)


def test_the_curve_over_missing_rates_is_kept_with_its_area(data: Path, tmp_path: Path) -> None:
    bundle = fit(small("emt"), data, tmp_path / "a", quiet=True)
    corpus = open_corpus(data)
    with Predictor(bundle, "torch") as predictor:
        report = run_robustness(
            predictor, corpus.split("test"), parse_rates("0:1:0.5"), corpus.info["arrays"]["test"], "test"
        )
    report.save(bundle)
    assert RobustnessReport.path() in Bundle.open(bundle.root).manifest.files
    mae = report.metrics["mae"]
    assert report.areas["mae"] == pytest.approx(0.25 * (mae[0] + 2 * mae[1] + mae[2]))
