"""Where training computes and how exactly; batches are made ahead of their steps and in order."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import small
from two_processes import DATASETS, ITEMS, preset

from mer_export.cuda import tf32
from mer_export.data.synthetic import synthesise
from mer_export.errors import NotAvailableError, UsageError
from train.batches import Batch, ahead, each_tensor
from train.config import load_preset
from train.devices import find_device, find_precision
from train.fit import fit
from train.loop import Phase
from train.recipe import protocol_class

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")
CPU = torch.device("cpu")


def switches() -> list[str]:
    backends = torch.backends
    return [s.fp32_precision for s in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]


def test_tf32_is_switched_for_products_convolutions_and_recurrence_alike_and_put_back() -> None:
    before, older = switches(), (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    with tf32(True):
        assert switches() == ["tf32"] * 3
        with tf32(False):
            assert switches() == ["ieee"] * 3
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
        assert switches() == ["tf32"] * 3
    with pytest.raises(KeyError), tf32(True):
        raise KeyError
    assert switches() == before
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == older


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    assert find_precision("auto", CPU) == "fp32"
    with pytest.raises(UsageError, match="precision tf32 is of CUDA devices"):
        find_precision("tf32", CPU)


@pytest.mark.parametrize("wrong", ["gpu", "cuda:", "cuda:-1", "cuda:one"])
def test_a_device_that_is_none_is_named(wrong: str) -> None:
    with pytest.raises(UsageError, match="device"):
        load_preset("cmerc/meld", [f"device='{wrong}'"])


def test_a_gpu_that_does_not_exist_is_an_error_that_names_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Board {number}")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(NotAvailableError, match=r"no cuda:2, there are cuda:0 \(Board 0\), cuda:1 \(Board 1\)"):
        find_device("cuda:2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("cuda") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="one GPU for several processes"):
        find_device("cuda:1")


def test_batches_are_made_in_a_thread_of_their_own_ahead_and_in_order() -> None:
    made: list[int] = []

    def make(group: int) -> tuple[int, int]:
        made.append(group)
        return group, threading.get_ident()

    found = list(ahead(make, range(7)))
    assert [n for n, _ in found] == made == list(range(7))
    assert {thread for _, thread in found} != {threading.get_ident()}


def test_what_collating_raises_is_raised_at_its_step() -> None:
    batches = ahead(lambda group: 1 // group, [1, 1, 0, 1])
    assert [next(batches), next(batches)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_labelled_rows_are_those_of_the_mask() -> None:
    mask = np.array([[True, False, True], [False, True, False]])
    batch = Batch({}, mask.shape, torch.from_numpy(np.flatnonzero(mask)), torch.zeros(3))
    output = torch.randn(2, 3, 4)
    assert torch.equal(batch.rows(output), output[torch.from_numpy(mask)])
    assert torch.equal(each_tensor(batch, lambda t: t + 1).labels, torch.ones(3))
    with pytest.raises(RuntimeError):
        batch.rows(torch.randn(2, 2, 4))


FORWARD_ALONE = {"tab"}
"""PyTorch has no backward pass of the margin loss on `meta`."""


@pytest.mark.parametrize("system", DATASETS)
def test_a_step_asks_its_device_for_no_value(system: str) -> None:
    """Tensors of the `meta` device have none to give: whatever would make the host wait for a GPU fails there."""
    meta, made = torch.device("meta"), small(system)
    protocol = protocol_class(system)(made.settings, made.difficulty)
    model = made.model.to(meta)
    module = protocol.prepare(model, made.items[:-3], meta).train()
    protocol.begin_epoch(model, 1)
    batch = protocol.collate(made.items[:4], made.contract)
    parts = protocol.step(module, each_tensor(protocol.vary(batch), lambda tensor: tensor.to(meta)))
    assert {str(part.device) for part in parts.values()} == {"meta"}
    if system not in FORWARD_ALONE:
        parts["total"].backward()
        assert any(p.grad is not None for p in model.parameters())


@gpu
@pytest.mark.parametrize("system", DATASETS)
def test_a_step_on_a_gpu_makes_the_host_wait_for_nothing(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesise(system, DATASETS[system], tmp_path / "data", ITEMS.get(system, 20))
    step = Phase._step

    def watched(self: Phase, index: int, batch: object) -> dict:
        if index == 0:
            return step(self, index, batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, index, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Phase, "_step", watched)
    bundle = fit(preset(system, "device=cuda"), tmp_path / "data", tmp_path / "run", quiet=True)
    assert bundle.manifest.provenance["computed"][0]["device"] == torch.cuda.get_device_name(0)


@gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_run_on_a_gpu_resumes_nothing_of_the_precision_before(precision: str, tmp_path: Path) -> None:
    synthesise("tab", "iemocap", tmp_path / "data", 20)
    before = switches()
    bundle = fit(
        preset("tab", "device=cuda", f"precision={precision}"), tmp_path / "data", tmp_path / "run", quiet=True
    )
    assert bundle.manifest.provenance["computed"][0]["precision"] == precision
    assert switches() == before


@gpu
def test_fp32_is_exact_and_tf32_is_not() -> None:
    torch.manual_seed(0)
    images, kernel = torch.randn(4, 64, 32, 32), torch.randn(64, 64, 3, 3)
    exact = torch.nn.functional.conv2d(images.double(), kernel.double())
    lstm = torch.nn.LSTM(256, 256).cuda()
    steps = torch.randn(20, 8, 256).cuda()
    errors, states = {}, {}
    for on in (False, True):
        with tf32(on), torch.no_grad():
            found = torch.nn.functional.conv2d(images.cuda(), kernel.cuda()).double().cpu()
            errors[on], states[on] = float((found - exact).abs().max()), lstm(steps)[0]
    assert errors[False] < 1e-3 < errors[True]
    assert not torch.equal(states[False], states[True])
