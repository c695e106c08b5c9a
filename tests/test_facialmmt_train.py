"""Claims about training facialmmt: passes in turn, shared texts, schedule, optimiser, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_facialmmt import SMALL, SWIN, make, utterances
from two_processes import stopped

from mer_export import registry
from mer_export.bundle import WEIGHTS
from mer_export.data.synthetic import synthesise
from mer_export.errors import InputError, UsageError
from mer_export.models.facialmmt.swin_names import load_face_recognition
from mer_export.weights import bundle_model, load_checkpoint
from train.adamw import AdamW
from train.batches import each_tensor, make_batch
from train.config import PRESETS, TrainConfig, load_preset
from train.fit import fit
from train.seeds import seed_everything
from train.state import METRICS
from train.systems.facialmmt.augment import augment_faces, jitter_faces, turn_hue
from train.systems.facialmmt.encoded import EncodedOnce
from train.systems.facialmmt.protocol import FacialMmtProtocol, by_dialogue
from train.systems.facialmmt.settings import FacialMmtSettings
from train.warm_up import WarmUp, warm_up_schedule

DATA = {"audio_dim": 5, "vision_dim": 4, "audio_len": 6, "vision_len": 5, "image_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("facialmmt")
    synthesise("facialmmt", "meld", out / "meld", dialogues=6, seed=1, **DATA)
    synthesise("facialmmt", "affwild", out / "faces", dialogues=6, seed=1, image_size=8)
    return out


def small(data: Path, *sets: str) -> TrainConfig:
    model = [f"model.{k}={json.dumps(v)}" for k, v in SMALL.items()] + [f"model.swin={json.dumps(SWIN)}"]
    reading = ["data.packing=bert", f"data.tokenizer={data / 'meld' / 'tokenizer'}", "data.faces.size=8"]
    run = ["device=cpu", "precision=fp32", "batch=4", "epochs=2", "lr=0.001"]
    run += ["protocol.text_encoder=random", "protocol.face_encoder=random"]
    auxiliary = [f"protocol.auxiliary.data={data / 'faces'}", "protocol.auxiliary.batch=20"]
    return load_preset("facialmmt/meld_roberta", [*model, *reading, *run, *auxiliary, *sets])


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(data: Path, tmp_path: Path) -> None:
    config = small(data)
    whole = fit(config, data / "meld", tmp_path / "whole", quiet=True)
    stopped(config, data / "meld", tmp_path / "cut")
    resumed = fit(config, data / "meld", tmp_path / "cut", quiet=True)
    a, b = (load_file(x.path(WEIGHTS)) for x in (whole, resumed))
    assert all(np.array_equal(a[n], b[n]) for n in a)


def test_faces_learn_in_their_own_pass_and_from_nothing_else(data: Path, tmp_path: Path) -> None:
    def expression_weights(*sets: str) -> dict[str, np.ndarray]:
        run = small(data, "epochs=1", "warm_up=null", "protocol.accumulate=1", *sets)
        made = fit(run, data / "meld", tmp_path / str(len(sets)), quiet=True)
        record = json.loads(made.path(METRICS).read_text())
        assert record["lr"] == run.protocol["auxiliary"]["lr"], "rates fall in the pass alone"
        found = load_file(made.path(WEIGHTS))
        return {n: a for n, a in found.items() if n.startswith("face.") and n.endswith((".weight", ".bias"))}

    with_pass, without = expression_weights(), expression_weights("protocol.auxiliary.data=null")
    fresh = registry.get("facialmmt").parse(small(data).model)
    seed_everything(1111)
    start = registry.get("facialmmt").build(fresh).state_dict()
    assert all(np.array_equal(start[n].numpy(), a) for n, a in without.items())
    assert any(not np.array_equal(start[n].numpy(), a) for n, a in with_pass.items())


def test_utterances_of_a_dialogue_share_its_text_and_nothing_changes(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b", "fusion")
    contract, model = bundle.manifest.contract, bundle_model(bundle)
    batch = make_batch([*utterances(contract), *utterances(contract, 2, seed=1)], contract, torch.device("cpu"))
    seen = []
    model.bert.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))
    with torch.no_grad():
        error = (EncodedOnce(model)(**batch.inputs) - model(**batch.inputs)).abs().max()
    assert seen == [2, 5]
    assert error < 1e-5


def test_a_step_asks_nothing_of_the_device_and_answers_as_one_that_does(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b", "end_to_end")
    contract, model = bundle.manifest.contract, bundle_model(bundle)
    protocol = FacialMmtProtocol(FacialMmtSettings())
    samples = [*utterances(contract), *utterances(contract, 2, seed=1)]
    known, asked = protocol.collate(samples, contract), make_batch(samples, contract, torch.device("cpu"))
    assert set(known.inputs) - set(asked.inputs) == {"text_rows", "text_place", "face_rows"}
    module = EncodedOnce(model).train()
    losses = []
    for batch in (known, asked):
        seed_everything(0)
        losses.append(protocol.step(module, batch)["total"])
    assert losses[0].item() == losses[1].item()
    # A tensor without values has nothing to ask for: whatever looks at one fails.
    module.to("meta")
    protocol.step(module, each_tensor(known, lambda tensor: tensor.to("meta")))["total"].backward()
    with pytest.raises(NotImplementedError):
        protocol.step(module, each_tensor(asked, lambda tensor: tensor.to("meta")))


def test_batches_by_dialogue_never_mix_dialogues(tmp_path: Path) -> None:
    contract = make(tmp_path / "b", "fusion").manifest.contract
    samples = [s for seed in range(3) for s in utterances(contract, 3, seed=seed)]
    protocol = FacialMmtProtocol(FacialMmtSettings(by_dialogue=True))
    chosen = protocol.choose(samples, 0)
    batches = protocol.batches(chosen, 2, None)
    assert sorted(s.id for s in chosen) == sorted(s.id for s in samples)
    assert [len(b) for b in batches] == [2, 1] * 3
    assert all(len({s.id.split("/")[0] for s in b}) == 1 for b in batches)
    assert [len(g) for g in by_dialogue(samples)] == [3, 3, 3]


def test_the_rate_rises_and_falls_and_resumes_anywhere() -> None:
    factor = warm_up_schedule(10.5, 0.2)
    assert [round(factor(i), 4) for i in (0, 1, 2, 10)] == [0, 0.5, 1, round(0.5 / 8.5, 4)]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    ramp = WarmUp(optimizer, 10.5, 0.2)
    for _ in range(3):
        ramp.next()
    there = optimizer.param_groups[0]["lr"]
    assert WarmUp(optimizer, 10.5, 0.2, step=3).optimizer.param_groups[0]["lr"] == there == 2 * factor(3)


def test_adamw_adds_eps_before_the_correction_and_decays_after_the_step() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = AdamW([parameter], lr=0.1, weight_decay=0.5)
    value, first, second = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.3, -2.0, 0.01), start=1):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        value -= 0.1 * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step) * first / (second**0.5 + 1e-6)
        value -= 0.1 * 0.5 * value
        assert parameter.item() == pytest.approx(value, abs=1e-9)


def test_changed_faces_stay_faces() -> None:
    torch.manual_seed(0)
    faces = torch.rand(6, 3, 16, 16) * 2 - 1
    assert jitter_faces(faces[:, None].expand(6, 2, 3, 16, 16), 0.5).shape == (6, 2, 3, 16, 16)
    changed = augment_faces(faces)
    assert changed.shape == faces.shape
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, faces)


def test_a_full_turn_of_the_hue_changes_nothing() -> None:
    image = torch.rand(3, 8, 8)
    assert torch.allclose(turn_hue(image, 1.0), image, atol=1e-5)
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert turn_hue(red, 1 / 3)[:, 0, 0].tolist() == pytest.approx([0, 1, 0], abs=1e-5)


def test_a_face_recognition_file_starts_the_expression_model(tmp_path: Path) -> None:
    model = bundle_model(make(tmp_path / "b", "face"))
    names = {"swin.norm.": "output_layer.0.", "features.": "output_layer.2.", "batch_norm.": "output_layer.3."}
    state = {}
    for name, value in model.state_dict().items():
        if not name.startswith(("linear", "classifier")):
            plain = next((t + name.removeprefix(o) for o, t in names.items() if name.startswith(o)), name[5:])
            state[f"backbone.{plain}"] = value + 1
    torch.save({"state_dict": state | {"head.weight": torch.zeros(2)}}, tmp_path / "recognition.pt")
    assert len(load_checkpoint(tmp_path / "recognition.pt")) == len(state) + 1
    before = model.state_dict()["swin.norm.weight"].clone()
    load_face_recognition(model, tmp_path / "recognition.pt")
    assert torch.equal(model.swin.norm.weight, before + 1)
    torch.save({"state_dict": {"other": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match="give a face recognition Swin"):
        load_face_recognition(model, tmp_path / "other.pt")


def test_a_folder_without_faces_is_refused(tmp_path: Path) -> None:
    empty = FacialMmtProtocol(FacialMmtSettings.model_validate({"auxiliary": {"data": str(tmp_path)}}))
    with pytest.raises(InputError, match="point at the root of Aff-Wild2"):
        empty.prepare(bundle_model(make(tmp_path / "e", "end_to_end")), [], torch.device("cpu"))


def test_presets_hold_the_published_values() -> None:
    own = [p for p in PRESETS if p.startswith("facialmmt/")]
    assert len(own) == 5
    config = load_preset("facialmmt/meld_roberta")
    assert (config.lr, config.weight_decay, config.batch, config.warm_up, config.clip) == (7e-6, 0.01, 1, 0.1, 0.8)
    assert config.protocol["accumulate"] == 4
    assert config.model["bert"]["layers"] == 24
    assert load_preset("facialmmt/meld_bert").model["bert"]["first_position"] == 0
