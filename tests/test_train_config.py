"""Presets are the published recipes, and a wrong setting is named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mer_export import registry
from mer_export.errors import UsageError
from train.config import (
    PRESETS,
    dump_config,
    first_difference,
    load_config,
    load_preset,
    network_config,
    parse_config,
    resolve_config,
)
from train.recipe import protocol_class, recipe

PUBLISHED = {
    "cmerc/iemocap": {"epochs": 80, "seed": 1475, "rank": 0.005, "contrast": 0.05, "ratio": 0.15, "dropout": 0.5},
    "cmerc/meld": {"epochs": 40, "seed": 67137, "rank": 0.002, "contrast": 0.15, "ratio": 0.4, "dropout": 0.4},
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_describes_a_network(name):
    config = load_preset(name)
    system = registry.get(config.system)
    assert system.contract(system.parse(config.model)).inputs
    assert config.licence
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_hold_the_published_numbers(name):
    config, want = load_preset(name), PUBLISHED[name]
    p = config.protocol
    assert (config.epochs, config.seed, config.batch, config.lr) == (want["epochs"], want["seed"], 16, 1e-4)
    assert (config.weight_decay, config.reseed, config.keep.split) == (3e-5, "same", "test")
    assert (p["rank_coefficient"], p["mscl_coefficient"], p["cscl_coefficient"]) == (
        want["rank"],
        want["contrast"],
        want["contrast"],
    )
    assert p["curriculum"]["epoch_ratio"] == want["ratio"]
    assert p["semantics"] == "batch"
    assert config.model["dropout"] == want["dropout"]


@pytest.mark.parametrize("dataset", ["iemocap", "meld"])
def test_m3net_is_cmerc_without_its_training_method(dataset):
    plain, full = load_preset(f"m3net/{dataset}"), load_preset(f"cmerc/{dataset}")
    assert plain.model == full.model
    assert not plain.protocol["calibrate"]
    assert not plain.protocol["contrast"]
    assert plain.protocol["curriculum"] is None


def test_published_networks_have_the_published_number_of_parameters():
    for name, used in (("cmerc/iemocap", 4_178_498), ("cmerc/meld", 10_683_458)):
        config = load_preset(name)
        system = registry.get(config.system)
        model = system.build(system.parse(config.model))
        renames = registry.resolve(system.weights).renames(model.config)
        trained = {n for n, _ in model.named_parameters()}
        assert sum(p.numel() for p in model.parameters()) == used
        assert trained <= set(renames.values())


def test_overrides_reach_nested_fields():
    config = load_preset(
        "cmerc/meld", ["lr=0.01", "model.dropout=0.1", "protocol.curriculum.steps=2", "keep.rule=last"]
    )
    assert (config.lr, config.model["dropout"]) == (0.01, 0.1)
    assert (config.protocol["curriculum"]["steps"], config.keep.rule) == (2, "last")


def test_an_override_makes_a_section_that_is_off():
    config = load_preset("m3net/meld", ["protocol.curriculum.epoch_ratio=0.5"])
    assert config.protocol["curriculum"]["epoch_ratio"] == 0.5


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("learning_rate=1", "learning_rate"),
        ("model.widht=8", "widht"),
        ("protocol.semantics=both", "semantics"),
        ("epochs=0", "epochs"),
        ("lr", "section.field=value"),
        ("lr.x=1", "it has no fields"),
        ("system=nothing", "nothing"),
        ("data.format.x=1", "has no fields"),
        ("protocol.class_frequencies=[0.5, half]", "class_frequencies"),
    ],
)
def test_a_wrong_override_is_named(override, named):
    with pytest.raises(UsageError, match=named) as caught:
        load_preset("cmerc/meld", [override])
    assert "\n" not in str(caught.value)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(UsageError, match="cmerc/meld"):
        load_preset("cmerc/nothing")


def test_a_config_file_that_is_no_mapping_is_refused(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("- 1\n")
    with pytest.raises(UsageError, match="list"):
        load_config(path)


def test_the_first_difference_is_named_with_its_path():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b: 1, now 2"
    assert first_difference({"a": 1}, {"a": 1}) is None


def test_reading_presets_needs_no_torch():
    code = "import sys, train.config as c; c.load_preset('cmerc/meld'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_recipe_of_another_system_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cmerc/meld is a recipe for cmerc, not for emt"):
        resolve_config("emt", "cmerc/meld", None)
    (tmp_path / "my.yaml").write_text("system: mult\nepochs: 1\n")
    with pytest.raises(UsageError, match="is a recipe for mult, not for emt"):
        resolve_config("emt", None, tmp_path / "my.yaml")


def test_an_import_needs_the_model_section_of_a_file_only(tmp_path):
    file = tmp_path / "network.yaml"
    file.write_text("model: {audio_dim: 7, modalities: [audio], labels: [a, b]}\n")
    found, _ = network_config("emt", None, file, ["model.head_width=9"])
    assert set(found) == {"title", "system", "model", "data", "licence"}
    assert (found["model"]["audio_dim"], found["model"]["head_width"], found["system"]) == (7, 9, "emt")
    with pytest.raises(UsageError, match="audio_dimm"):
        network_config("emt", None, file, ["model.audio_dimm=9"])
    whole, _ = network_config("cmerc", "meld", None)
    assert whole == load_preset("cmerc/meld").model_dump(mode="json")


@pytest.mark.parametrize(
    ("preset", "setting", "said"),
    [
        ("cmerc/meld", "class_frequencies=[0.5, 0.5]", "class_frequencies has 2 values, the model has 7 labels"),
        ("mtee/mosei_senti", "loss=ce", "loss ce does not fit task regression"),
        ("mtee/mosei", "rehearsal={rule: gem, new: 7}", "rehearsal.new is 7, the model has labels 0..5"),
        ("mtee/mosei", "semantics=batch", "semantics batch is of the transformer, eea has single only"),
        ("tab/iemocap_lhs", "penalty=0.3", "penalty is for variants with a context, lhs has none"),
        ("facialmmt/meld_fusion", "augment_faces=true", "augment_faces is for model.variant face, this is fusion"),
        ("facialmmt/meld_fusion", "auxiliary={data: aff}", "auxiliary.data is for model.variant end_to_end"),
        ("facialmmt/meld_vision", "by_dialogue=true", "by_dialogue tells dialogues apart by their text"),
    ],
)
def test_a_setting_of_another_network_is_refused_before_training_starts(preset: str, setting: str, said: str) -> None:
    config = load_preset(preset, [f"protocol.{setting}"])
    protocol = protocol_class(config.system)(recipe(config.system).settings.model_validate(config.protocol))
    with pytest.raises(UsageError, match=re.escape(f"protocol.{said}")):
        protocol.check(registry.get(config.system).parse(config.model))
