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
