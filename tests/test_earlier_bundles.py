"""Bundles that earlier releases wrote still open, verify, infer and pass parity (tests/data/bundles, release 0.1)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cli
from mer_export.bundle import Bundle

DATA = Path(__file__).parent / "data"
INPUTS = {"cmerc": DATA / "small" / "dialogues.jsonl", "emt": DATA / "small" / "utterances"}


def run(*arguments: str) -> None:
    cli.app([*arguments, "-q"], standalone_mode=False)


@pytest.fixture(params=list(INPUTS))
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "bundles" / request.param, tmp_path / request.param))


def test_every_checksum_holds(bundle: Path) -> None:
    assert Bundle.open(bundle).verify() > 10


@pytest.mark.parametrize("runtime", ["torch", "torchscript", "exported_program", "onnxruntime", "openvino"])
def test_predictions_are_those_of_the_day_it_was_written(bundle: Path, runtime: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("infer", str(bundle), str(INPUTS[bundle.name]), "--runtime", runtime, "-o", str(out))
    kept = [json.loads(line) for line in (DATA / "bundles" / f"{bundle.name}.predictions.jsonl").open()]
    found = [json.loads(line) for line in out.open()]
    for then, now in zip(kept, found, strict=True):
        assert [now[k] for k in ("sample", "unit", "label", "modalities")] == [
            then[k] for k in ("sample", "unit", "label", "modalities")
        ]
        numbers = [list(r["probabilities"].values()) if "probabilities" in r else [r["score"]] for r in (then, now)]
        np.testing.assert_allclose(numbers[1], numbers[0], atol=1e-5)


def test_parity_passes(bundle: Path) -> None:
    run("parity", str(bundle), "--data", str(INPUTS[bundle.name]), "--limit", "4")
    report = json.loads((bundle / "reports" / "parity.json").read_text())
    ran = [c for c in report["candidates"] if c["verdict"] != "not run"]
    assert len(ran) >= 13
    assert all(c["verdict"] == "pass" for c in ran)
