"""Two processes on the CPU train as one: every system, resumed runs, batches that add up, and divergence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from two_processes import BATCHES, DATASETS, ITEMS, mean_over_items, without_chance

from mer_export.bundle import WEIGHTS, Bundle
from mer_export.data.open import open_corpus
from mer_export.data.synthetic import synthesise
from train.fit import fit
from train.state import DIFFICULTY, METRICS

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    for system, dataset in DATASETS.items():
        synthesise(system, dataset, out / system, ITEMS.get(system, 20))
    return out


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes left: bundles, and the reports `0.json` and `1.json`."""
    out = tmp_path_factory.mktemp("runs")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, str(SCRIPT), str(data), str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def report(runs: Path, rank: int) -> dict[str, list[str]]:
    return json.loads((runs / f"{rank}.json").read_text())


@pytest.mark.parametrize("system", DATASETS)
def test_both_processes_hold_the_same_weights(runs: Path, system: str) -> None:
    assert report(runs, 0)[system][0] == report(runs, 1)[system][0]


@pytest.mark.parametrize("system", DATASETS)
def test_an_interrupted_run_of_two_processes_ends_with_the_weights_of_a_whole_one(runs: Path, system: str) -> None:
    whole, resumed = report(runs, 0)[system]
    assert whole == resumed
    assert (runs / f"{system}-whole" / WEIGHTS).read_bytes() == (runs / f"{system}-cut" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("system", DATASETS)
def test_two_halves_of_a_batch_train_as_the_whole_batch(runs: Path, data: Path, tmp_path: Path, system: str) -> None:
    with mean_over_items():
        one = fit(without_chance(system, 2 * BATCHES[system]), data / system, tmp_path / "one", quiet=True)
    two = Bundle.open(runs / f"{system}-halves")
    for alone, halves in zip(losses(one), losses(two), strict=True):
        assert halves == pytest.approx(alone, rel=1e-4)


def losses(bundle: Bundle) -> list[dict[str, float]]:
    """The mean losses of every epoch."""
    return [json.loads(line)["train"] for line in bundle.path(METRICS).read_text().splitlines()]


def test_difficulties_that_two_processes_measured_are_in_an_intact_bundle(runs: Path, data: Path) -> None:
    bundle = Bundle.open(runs / "cmerc-whole")
    assert bundle.verify() == len(bundle.manifest.files)
    measured = json.loads(bundle.path(DIFFICULTY).read_text())
    assert {*measured} == {s.id for s in open_corpus(data / "cmerc").split("train")}


def test_divergence_in_one_process_ends_both_with_the_same_sentence(runs: Path) -> None:
    first, second = report(runs, 0)["diverged"], report(runs, 1)["diverged"]
    assert first == second
    assert "training diverged in epoch 1" in first[0]


def test_processes_wait_for_as_long_as_the_first_one_measures(runs: Path) -> None:
    assert report(runs, 0)["patient"] == report(runs, 1)["patient"]


def test_a_bundle_says_how_many_processes_made_it(runs: Path) -> None:
    computed = Bundle.open(runs / "tab-whole").manifest.provenance["computed"]
    assert computed == [{"device": "cpu", "precision": "fp32", "processes": 2, "device_data": False}]
