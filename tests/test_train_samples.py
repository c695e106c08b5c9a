"""The small real data sets train through their presets and do what docs/results.md says."""

import json
from pathlib import Path

import pytest
from conftest import SAMPLE_DATA

from mer_export.errors import InputError
from train.config import load_preset
from train.fit import EVALUATION, fit

needs_data = pytest.mark.skipif(not (SAMPLE_DATA / "mosi_utt").is_dir(), reason=f"no sample data in {SAMPLE_DATA}")


@needs_data
@pytest.mark.parametrize(("preset", "least"), [("sample/mosi", 76.0), ("sample/mosi_text", 76.0)])
def test_mosi_is_learnt_as_well_as_by_a_recurrent_baseline(preset: str, least: float, tmp_path: Path):
    bundle = fit(load_preset(preset), SAMPLE_DATA / "mosi_utt", tmp_path / "m", quiet=True)
    assert json.loads(bundle.path(EVALUATION).read_text())["test"]["single"]["accuracy"] > least


@needs_data
def test_features_that_saw_the_labels_are_refused_with_another_split(tmp_path: Path):
    with pytest.raises(InputError, match="split_context"):
        fit(
            load_preset("sample/mosi", ["data.split=split_official"]),
            SAMPLE_DATA / "mosi_utt",
            tmp_path / "m",
            quiet=True,
        )


@needs_data
def test_meld_text_trains_with_two_modalities_missing(tmp_path: Path):
    config = load_preset("sample/meld_text", ["epochs=1", "lr=0.003", "average=null"])
    bundle = fit(config, SAMPLE_DATA / "meld_text", tmp_path / "m", quiet=True)
    assert set(bundle.manifest.features) == {"text"}
    assert json.loads(bundle.path(EVALUATION).read_text())["test"]["single"]["accuracy"] > 48.12  # always neutral
