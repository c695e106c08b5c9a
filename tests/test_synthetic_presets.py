"""What `mer synth` writes trains with the preset that it names."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from conftest import Mer

from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.data.formats.format import synthesisers
from train.config import PRESETS, load_preset

NAMED = {f"synthetic/{system}_{dataset}": system for system, s in synthesisers().items() for dataset in s.datasets}


def test_there_is_a_preset_for_every_synthetic_data_set_and_no_other() -> None:
    assert set(synthesisers()) == set(registry.names())
    assert {p for p in PRESETS if p.startswith("synthetic/")} == set(NAMED)
    assert {name: load_preset(name).system for name in NAMED} == NAMED


@pytest.mark.parametrize("system", registry.names())
def test_a_system_trains_on_what_it_synthesises(
    mer: Mer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = mer("synth", system, "--dialogues", "24")
    assert code == 0, err
    folder = Path(f"{system}-synthetic")
    assert {Path(line).parts[0] for line in out.splitlines()} == {str(folder)}
    assert (folder / "ground_truth.json").exists()
    line = shlex.split(err.splitlines()[-1])
    assert line[:3] == ["mer", "train", system]
    code, _, err = mer(*line[1:], "--set", "epochs=1", "--quiet")
    assert code == 0, err
    trained = Bundle.open("runs/a")
    assert trained.manifest.system == system
    assert trained.verify() == len(trained.manifest.files)


def test_other_widths_than_those_of_the_preset_name_none(mer: Mer, tmp_path: Path) -> None:
    code, _, err = mer("synth", "emt", "--dialogues", "20", "--out", tmp_path / "d", "--set", "audio_dim=3")
    assert (code, "--preset" in err) == (0, False)


def test_files_that_lie_there_are_written_over_by_force_alone(mer: Mer, tmp_path: Path) -> None:
    words = ["synth", "cmerc", "--dataset", "meld", "--dialogues", "8", "--out", tmp_path]
    theirs = tmp_path / "MELD_features_raw1.pkl"
    theirs.write_text("the authors' own")
    code, out, err = mer(*words)
    assert (code, out) == (2, "")
    assert err == f"mer: {tmp_path} holds files: pass --force to write over those of the same names, or another --out\n"
    assert theirs.read_text() == "the authors' own"
    assert mer(*words, "--force")[0] == 0
    assert theirs.read_bytes() != b"the authors' own"


def test_a_best_epoch_by_a_metric_that_is_never_a_number_is_refused(mer: Mer, tmp_path: Path) -> None:
    """Few samples lack a label altogether, whose recall then does not exist."""
    mer("synth", "mtee", "--dialogues", "24", "--out", tmp_path / "data")
    words = ["--preset", "synthetic/mtee_mosei_emo", "--data", tmp_path / "data", "--out", tmp_path / "run", "--quiet"]
    code, _, err = mer("train", "mtee", *words, "--set", "epochs=1", "--set", "keep.rule=best")
    assert code == 2
    assert "keep.metric weighted_accuracy on valid was never a number" in err
