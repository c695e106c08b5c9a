"""Few new samples beside old ones: who stands in a batch, what counts of them, and how gradients are turned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mer_export.data.formats.mtee.reader import MOSEI_LABELS, read
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.data.synthetic import synthesise
from mer_export.errors import UsageError
from train.systems.mtee.rehearsal import Memory, with_old
from train.systems.mtee.settings import Rehearsal

CPU = torch.device("cpu")
NEW = 1


def samples(name: str, count: int) -> list[Sample]:
    """Of three labels: the old ones never have the second."""
    labels = np.eye(3, dtype=np.float32)[[0, 2] * count][:count]
    return [Sample(f"{name}{i}", {}, (str(i),), labels[i : i + 1]) for i in range(count)]


def rule(name: str, **settings: float) -> Rehearsal:
    return Rehearsal.model_validate({"rule": name, "new": NEW, "batch": 3, **settings})


def memory(name: str, **settings: float) -> Memory:
    return Memory(rule(name, **settings), samples("old", 5), 3, weighted=True, device=CPU)


def test_joint_training_steps_on_old_samples_before_each_batch_of_new_ones():
    new = [samples("a", 2), samples("b", 1)]
    groups = with_old(new, samples("old", 5), rule("joint"))
    assert groups[1::2] == new
    assert [len(g) for g in groups[::2]] == [3, 3]
    assert all(s.id.startswith("old") for g in groups[::2] for s in g)


def test_episodic_memory_draws_old_samples_for_every_batch():
    groups = with_old([samples("a", 2)], samples("old", 5), rule("gem", batch=5120))
    assert [len(g) for g in groups] == [7]
    assert {s.id for s in groups[0]} == {"a0", "a1", *(f"old{i}" for i in range(5))}


def test_old_samples_count_for_the_labels_that_are_not_new():
    logits, labels = torch.randn(4, 3), torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]])
    # Three of the five old samples have the first label, two the last one: negatives per positive.
    weight = torch.tensor([2 / 3, 3 / 2])
    expected = functional.binary_cross_entropy_with_logits(logits[:, [0, 2]], labels[:, [0, 2]], pos_weight=weight)
    assert torch.equal(memory("joint").loss("bce", logits, labels), expected)


@pytest.mark.parametrize(
    ("new", "turned"),
    [
        ([1.0, 2.0], [1.0, 2.0]),  # agrees: 2 > 0
        ([-3.0, 1.0], [-3.0 + 2 * 6 / 4.001, 1.0]),  # -(m.g) / (m.m + 0.001) of the old gradient
        ([-0.001, 1.0], [-0.001 + 2 * 0.01 / (1 + 1e-7), 1.0]),  # the margin is more
    ],
)
def test_a_gradient_that_goes_against_the_old_one_is_turned(new: list[float], turned: list[float]):
    model = nn.Linear(2, 1, bias=False)
    found = memory("gem", margin=0.01)
    found.remember((model.weight * torch.tensor([[2.0, 0.0]])).sum(), model)
    model.weight.grad = torch.tensor([new])
    found.turn(model)
    assert model.weight.grad[0].tolist() == pytest.approx(turned, abs=1e-6)


def test_the_old_split_is_the_training_split_without_the_label(tmp_path: Path):
    synthesise("mtee", "mosei_emo", tmp_path, dialogues=40, seed=3, text_dim=3, audio_dim=3, vision_dim=3, steps=2)
    emotions = {"fsl": 4, "balanced": True, "old": True, "steps": 20}
    few = read(tmp_path, DataSpec.model_validate({"dataset": "mosei_emo", "emotions": emotions}))
    whole = read(tmp_path, DataSpec.model_validate({"dataset": "mosei_emo"})).split("train")
    column = MOSEI_LABELS.index("sad")
    without = [s for s in whole if s.labels is not None and not s.labels[0, column]]
    assert [s.id.partition("/")[2] for s in few.split("old")] == [s.id.partition("/")[2] for s in without]
    assert len(few.split("train")) < len(without) < len(whole)
    with pytest.raises(UsageError, match=r"set data\.emotions\.fsl too"):
        read(tmp_path, DataSpec.model_validate({"dataset": "mosei_emo", "emotions": {"old": True}}))
