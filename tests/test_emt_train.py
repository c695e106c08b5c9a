"""Training emt, tfr_net and mult: accumulation rules, resuming, schedule, robustness over missing rates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_training
import torch
from conftest import Once
from safetensors.numpy import load_file
from small_emt import BERT
from two_processes import stopped

from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.data.open import open_corpus
from mer_export.data.samples import Sample
from mer_export.data.synthetic import synthesise
from mer_export.errors import UsageError
from runtimes.predict.predictor import Predictor
from runtimes.predict.robustness import RobustnessReport, parse_rates, run_robustness
from train.accumulation import Accumulation
from train.config import PRESETS, TrainConfig, load_preset
from train.devices import make_accelerator
from train.fit import fit, preview
from train.loop import Phase
from train.recipe import protocol_class
from train.seeds import seed_everything
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


@pytest.fixture(scope="module")
def whole(data: Path, once: Once) -> Callable[[str], Bundle]:
    """The finished run of a system; read only."""
    return lambda system: once(f"trained {system}", lambda root: fit(small(system), data, root, quiet=True))


@pytest.mark.parametrize("system", SETS)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    system: str, whole: Callable[[str], Bundle], data: Path, tmp_path: Path
) -> None:
    stopped(small(system), data, tmp_path / "parts")
    parts = fit(small(system), data, tmp_path / "parts", quiet=True)
    a, b = (load_file(x.root / WEIGHTS) for x in (whole(system), parts))
    assert all(np.array_equal(a[n], b[n]) for n in a)
    assert {"mae", "corr", "non0_acc_2"} <= set(parts.manifest.provenance["result"])


def test_gradients_add_up_and_leftovers_are_dropped() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    updates = Updates(torch.optim.SGD([weight], lr=1.0), Accumulation(2))
    seen = []
    for batch in range(5):
        updates.before(batch)
        weight.backward(torch.tensor(float(batch + 1)))
        updates.after(batch)
        seen.append(-weight.item())
    assert seen == [0, 3, 3, 10, 10]


def test_the_baselines_apply_the_running_sum_and_the_last_one_twice() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    updates = Updates(torch.optim.SGD([weight], lr=1.0), Accumulation(2, "each"), clip_value=2.5)
    seen = []
    for batch in range(3):
        updates.before(batch)
        weight.backward(torch.tensor(1.0 if batch < 2 else 9.0))
        updates.after(batch)
        seen.append(-weight.item())
    assert seen == [1, 1 + 2 + 2, 5 + 2.5]


def test_a_run_of_too_few_batches_for_a_step_is_refused(data: Path, tmp_path: Path) -> None:
    config = small("emt", "protocol.accumulate=9")
    sentence = r"an epoch has fewer batches \(5\) than make a step \(protocol\.accumulate=9\): lower"
    for run in (preview, fit):
        with pytest.raises(UsageError, match=sentence):
            run(config, data, tmp_path / "a")
    steps = preview(small("emt", "protocol.accumulate=2"), data, tmp_path / "a")["training"]["steps_per_epoch"]
    assert (steps, list(tmp_path.iterdir())) == (2, [])


def test_a_rate_that_warms_up_falls_to_0_with_the_last_step_of_a_running_sum() -> None:
    config, settings, model, _, contract, items, _ = small_training.small(
        "mult", "warm_up=0", "epochs=2", "batch=2", "protocol.accumulate=2"
    )
    phase = Phase(config, settings, model, contract, items[:8], make_accelerator(config))
    first = phase.lr
    rates = [phase.epoch(number) and phase.lr / first for number in range(2)]
    assert rates == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize("system", SETS)
def test_a_labelled_item_with_nothing_to_read_is_left_out_of_measuring(system: str) -> None:
    _, settings, model, task, contract, items, _ = small_training.small(system)
    protocol = protocol_class(system)(settings)
    empty = replace(items[0], inputs={}, complete={}, kept={})
    assert protocol.evaluate(model, [empty, *items], contract, task) == protocol.evaluate(model, items, contract, task)


def test_the_text_encoder_of_mult_is_not_trained(whole: Callable[[str], Bundle]) -> None:
    config, after = small("mult"), load_file(whole("mult").root / WEIGHTS)
    system = registry.get("mult")
    seed_everything(config.seed)
    before = {n: t.numpy() for n, t in system.build(system.parse(config.model)).state_dict().items()}
    frozen = {n for n in after if n.startswith("bert.")}
    assert all(np.array_equal(before[n], after[n]) for n in frozen)
    assert not all(np.array_equal(before[n], after[n]) for n in set(after) - frozen)


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
    with pytest.raises(UsageError, match=r"seeds.*greater than or equal to 0"):
        load_preset("emt/mosi", ["protocol.missing={seeds: [-1, 1, 1]}"])


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_one_item_left_over_joins_the_batch_before_it(batches: int) -> None:
    items = [Sample(str(i), {}, (str(i),)) for i in range(8 * batches + 1)]
    settings = EmtSettings(text_encoder="random")
    found = EmtProtocol(settings).batches(items, 8, None)
    assert [len(b) for b in found] == [8] * (batches - 1) + [9]
    assert [s.id for b in found for s in b] == [s.id for s in items]
    with pytest.raises(UsageError, match=r"^0 alone would be a batch of one unit, and batch norm needs two: .*batch=2"):
        EmtProtocol(settings).batches(items, 1, None)


def test_rates_are_read_as_ranges_single_values_and_triples() -> None:
    assert [r.name for r in parse_rates("0.0:1.0:0.5")] == ["0", "0.5", "1"]
    assert len(parse_rates("0.0:1.0:0.1")) == 11
    assert parse_rates("0.1,0.2,0.3")[0].vision == 0.3
    for wrong in ("x", "1.5", "0.1,0.2", "0:1:0", "1:0:0.1", "", "0:0.8:0.3", "0:1:1e-9"):
        with pytest.raises(UsageError, match="--missing-rate"):
            parse_rates(wrong)


def test_the_curve_over_missing_rates_is_kept_with_its_area(
    whole: Callable[[str], Bundle], data: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(shutil.copytree(whole("emt").root, tmp_path / "a"))
    corpus = open_corpus(data)
    with Predictor(bundle, "torch") as predictor:
        report = run_robustness(
            predictor, corpus.split("test"), parse_rates("0:1:0.5"), corpus.info["arrays"]["test"], "test"
        )
    # As where all answers are one, and nothing correlates with them.
    report.metrics["corr"][-1] = float("nan")
    report.save(bundle)
    again = RobustnessReport.load(Bundle.open(bundle.root))
    assert again is not None
    assert again.metrics.keys() == report.metrics.keys()
    assert all(np.array_equal(again.metrics[n], own, equal_nan=True) for n, own in report.metrics.items())
    mae = report.metrics["mae"]
    assert report.areas["mae"] == pytest.approx(0.25 * (mae[0] + 2 * mae[1] + mae[2]))
