"""docs/evaluation.md: the recipe of three commands for each system, which runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import Mer

from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.data.synthetic import synthesise
from mer_export.weights import export_weights
from train.config import load_preset

PAGE = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
RECIPES = {
    name: re.findall(r"^    (mer .+)$", section, re.MULTILINE)
    for title, section in re.findall(r"^### ([^\n]+)\n(.+?)(?=^###|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    for name in title.split(", ")
}
DIMS = {"text_dim": 8, "audio_dim": 8, "vision_dim": 8}
SMALL = [*(f"model.{n}={d}" for n, d in DIMS.items()), "model.width=8", "model.hidden=8", "model.buckets=[33]"]
INSTEAD = {"--preset meld": "--preset sample/demo", "--format onnx": "--format torchscript"}
"""What the commands say, by what is quick."""


def test_each_system_has_a_recipe_of_three_commands() -> None:
    assert set(RECIPES) == set(registry.names())
    assert {tuple(c.split()[1] for c in commands) for commands in RECIPES.values()} == {("import", "eval", "export")}
    assert {p for p in re.findall(r"`(mosei_zsl\d)`", PAGE)} == {f"mosei_zsl{i}" for i in range(6)}


def test_the_recipe_runs_on_a_checkpoint_with_the_authors_names(
    mer: Mer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    synthesise("cmerc", "meld", tmp_path / "DIR", dialogues=6, seed=3, **DIMS)
    system, config = registry.get("cmerc"), load_preset("sample/demo", SMALL)
    model_config = system.parse(config.model)
    weights = export_weights(system.build(model_config), registry.resolve(system.weights), model_config)
    torch.save(weights, "MELD_checkpoint.pkl")
    sizes = [w for s in SMALL for w in ("--set", s)]
    for command in RECIPES["cmerc"]:
        for shown, quick in INSTEAD.items():
            command = command.replace(shown, quick)
        verb, *words = shlex.split(command)[1:]
        code, _, err = mer(verb, *words, *(sizes if verb == "import" else []))
        assert code == 0, f"{command}: {err}"
    assert "<svg" in Path("cmerc.html").read_text()
    assert [v.format for v in Bundle.open("runs/cmerc").manifest.variants] == ["torchscript"]
