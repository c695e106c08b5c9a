"""Losses, views, curriculum and difficulty behave as described, beyond the golden values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import CONFIG, make_samples

from mer_export import registry
from mer_export.data.samples import Sample
from mer_export.errors import InputError, UsageError
from train.batches import host_batch
from train.systems.cmerc import curriculum, losses
from train.systems.cmerc.difficulty import find_difficulty, measure_difficulty
from train.systems.cmerc.views import VIEWS, degraded, time_mean


def log_prob(rows: int, classes: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.log_softmax(torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)), -1)


def test_rank_is_zero_and_without_gradient_where_no_view_is_more_confident():
    own = log_prob(5).requires_grad_()
    loss = losses.rank(own, {"text": own.detach()}, torch.zeros(5, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert not own.grad.any()


def test_rank_pulls_on_the_full_model_only():
    own, view = log_prob(5).requires_grad_(), log_prob(5, seed=1).requires_grad_()
    losses.rank(own, {"text": view}, torch.arange(5) % 4).backward()
    assert own.grad.any()
    assert view.grad is None


def test_contrast_of_one_utterance_is_zero():
    features = torch.randn(1, 6, requires_grad=True)
    assert losses.contrast(features, {"text": torch.tensor([1])}) == 0


def test_focal_weighs_hard_targets_more_with_gamma():
    easy, hard = torch.log(torch.tensor([[0.9, 0.1]])), torch.log(torch.tensor([[0.1, 0.9]]))
    label = torch.tensor([0])
    ratios = [losses.focal(hard, label, gamma) / losses.focal(easy, label, gamma) for gamma in (0.0, 1.0, 2.5)]
    assert ratios[0] < ratios[1] < ratios[2]


def test_time_mean_ignores_padding_in_single_and_divides_by_it_in_batch():
    x = torch.tensor([[[2.0], [4.0], [0.0]]])
    lengths = torch.tensor([2])
    assert time_mean(x, lengths, "single").unique().tolist() == [3.0]
    assert time_mean(x, lengths, "batch").unique().tolist() == [2.0]


@given(st.integers(1, 200), st.floats(0.01, 1.0), st.integers(1, 5))
@settings(deadline=None)
def test_the_curriculum_only_grows_and_ends_with_everything(count, share, steps):
    difficulty = {str(i): float((i * 7919) % 101) for i in range(count)}
    ratios = [curriculum.ratio(e, share, steps) for e in range(500)]
    sizes = [len(curriculum.easiest(difficulty, r)) for r in ratios]
    assert sizes == sorted(sizes)
    assert sizes[-1] == count


def test_the_curriculum_keeps_the_training_order():
    samples = [Sample(str(i), {}, ("u",)) for i in range(4)]
    chosen = curriculum.select(samples, {"3": 0.1, "1": 0.2, "0": 0.3, "2": 0.4}, 0.75)
    assert [s.id for s in chosen] == ["0", "1", "3"]


def test_difficulties_of_other_dialogues_are_refused():
    samples = [Sample("a", {}, ("u",))]
    with pytest.raises(UsageError, match="'b'"):
        curriculum.check(samples, {"a": 0.1, "b": 0.2})
    with pytest.raises(UsageError, match="'a' has no difficulty"):
        curriculum.check(samples, {})


def test_the_choice_of_a_difficulty_file_is_never_a_guess(tmp_path):
    with pytest.raises(UsageError, match="measure"):
        find_difficulty(tmp_path)
    folder = tmp_path / "caldiff"
    folder.mkdir()
    for name in ("IEMOCAP", "MELD"):
        (folder / f"{name}_diff.pkl").write_bytes(b"")
    with pytest.raises(UsageError, match="several"):
        find_difficulty(tmp_path)
    assert find_difficulty(tmp_path, "meld").name == "MELD_diff.pkl"
    (folder / "IEMOCAP_diff.pkl").unlink()
    assert find_difficulty(tmp_path).name == "MELD_diff.pkl"
    (tmp_path / "data").mkdir()
    assert find_difficulty(tmp_path / "data").resolve() == folder / "MELD_diff.pkl"


def test_difficulty_does_not_depend_on_the_other_dialogues():
    system = registry.get("cmerc")
    config = system.parse({"text_dim": 6, "audio_dim": 5, "vision_dim": 4, "width": 8, "hidden": 8})
    torch.manual_seed(0)
    model = system.build(config)
    rng = np.random.default_rng(0)

    def dialogue(name: str, n: int) -> Sample:
        shapes = {"text": (4, n, 6), "audio": (n, 5), "vision": (n, 4)}
        inputs = {m: rng.normal(size=s).astype(np.float32) for m, s in shapes.items()}
        inputs["speaker"] = np.arange(n) % 2
        return Sample(name, inputs, tuple(f"{name}/{i}" for i in range(n)), rng.integers(0, 6, n))

    a, b = dialogue("a", 5), dialogue("b", 3)
    both = measure_difficulty(model, [a, b])
    assert both["a"] == measure_difficulty(model, [b, a])["a"]
    # (hinge + speakers) / (speakers + utterances) with a hinge that is not negative
    assert both["a"] >= 2 / 7
    with pytest.raises(InputError, match="no label"):
        measure_difficulty(model, [Sample("c", a.inputs, a.units)])
    with pytest.raises(InputError, match="there is no dialogue to measure the difficulty of"):
        measure_difficulty(model, [])


@pytest.mark.parametrize("semantics", ["single", "batch"])
def test_views_are_those_of_whole_runs_with_each_modality_encoded_in_one_batch(semantics):
    system = registry.get("cmerc")
    config = system.parse(CONFIG | {"residue": True, "speaker_embedding": True, "modal_embedding": True})
    torch.manual_seed(0)
    model = system.build(config).eval()
    inputs = host_batch(make_samples(4), system.contract(config)).inputs
    whole = {}
    with torch.no_grad():
        for name, (modality, context) in VIEWS.items():
            mean = {modality: time_mean(inputs[modality], inputs["lengths"], semantics)} if modality else {}
            features = model.features(**inputs | mean, semantics=semantics, context=context)
            whole[name] = model.classify(features, inputs["lengths"])
    runs = []
    model.text_encoder.register_forward_hook(lambda *_: runs.append(1))
    found = degraded(model, inputs, semantics)
    assert len(runs) == 1
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
