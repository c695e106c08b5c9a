"""What a person says of data is honoured or refused: overrides, a named format, sources that are switched off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundle
import yaml

from mer_export.bundle import CONFIG, Bundle
from mer_export.data.bundle_data import bundle_corpus, bundle_spec, choose_spec, line_spec
from mer_export.data.open import open_corpus
from mer_export.data.spec import DataSpec
from mer_export.errors import UsageError
from train.config import dump_config, load_preset, parse_config

MAPPING: dict[str, Any] = {
    "table": "u.csv",
    "dialogue": "talk",
    "speaker": "who",
    "label": "mood",
    "speakers": 3,
    "text": [{"file": "t.npy"}],
    "audio": {"file": "a.npy"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table with text and audio, which describes itself."""
    path = tmp_path / "data"
    path.mkdir()
    (path / "u.csv").write_text("talk,who,mood,other\nd1,A,joy,anger\nd1,B,anger,joy\n")
    np.save(path / "t.npy", np.ones((2, 2, 16), np.float32))
    np.save(path / "a.npy", np.ones((2, 8), np.float32))
    (path / "table.yaml").write_text(yaml.safe_dump(MAPPING))
    return path


def lines(path: Path) -> Path:
    said = [{"label": "joy", "text": [1.0] * 16, "audio": [1.0] * 8}]
    path.write_text(json.dumps({"dialogue": "d1", "utterances": said}) + "\n")
    return path


def bundle_with(root: Path, data: dict[str, Any]) -> Bundle:
    bundle = small_bundle.make_bundle(root)
    with bundle.commit() as change:
        change.write(CONFIG, yaml.safe_dump({"system": "cmerc", "data": data}))
    return Bundle.open(root)


def test_a_bundle_tells_as_many_speakers_apart_as_its_model_knows(tmp_path: Path) -> None:
    bundle, path = bundle_with(tmp_path / "bundle", {"dataset": "meld"}), lines(tmp_path / "a.jsonl")
    assert bundle_spec(bundle, path).told_apart == line_spec(bundle).told_apart == small_bundle.CONFIG["speakers"]
    assert bundle_spec(bundle, path, sets=["data.speakers=2"]).told_apart == 2


def inputs(path: Path, spec: DataSpec) -> set[str]:
    return set(next(iter(open_corpus(path, spec))).inputs)


@pytest.mark.parametrize("nothing", [None, []])
def test_a_config_switches_an_inherited_modality_off(folder: Path, nothing: Any) -> None:
    assert inputs(folder, DataSpec()) == {"text", "audio", "speaker"}
    spec = DataSpec.model_validate({"audio": nothing})
    assert inputs(folder, spec) == {"text", "speaker"}
    assert inputs(lines(folder / "d.jsonl"), spec) == {"text", "speaker"}


def test_a_modality_is_switched_off_in_parquet_too(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from mer_export.data.formats.parquet.writer import write_parquet

    write_parquet(open_corpus(lines(tmp_path / "d.jsonl")), tmp_path / "d.parquet")
    assert inputs(tmp_path / "d.parquet", DataSpec.model_validate({"audio": None})) == {"text", "speaker"}


def test_a_config_switches_any_inherited_column_off(folder: Path) -> None:
    off = DataSpec.model_validate({"speaker": None, "label": None})
    (sample,) = open_corpus(folder, off)
    assert sample.labels is None
    assert sample.inputs["speaker"].tolist() == [0, 0]


def test_what_a_config_says_holds_even_where_it_is_the_default() -> None:
    spec = DataSpec(speakers=2).over({"speakers": 9, "faces": {"size": 96}}, "table.yaml")
    assert (spec.speakers, spec.faces.size) == (2, 96)


def test_a_resolved_configuration_reads_as_the_original(folder: Path) -> None:
    preset = load_preset("cmerc/meld").model_dump(mode="json")
    said = {"audio": [], "speaker": None, "faces": {"size": 96}}
    config = parse_config(preset | {"data": said})
    again = parse_config(yaml.safe_load(dump_config(config)))
    assert again.data.over(MAPPING, "table.yaml") == config.data.over(MAPPING, "table.yaml")
    assert inputs(folder, again.data) == {"text", "speaker"}


def test_the_empty_fields_of_an_earlier_bundle_switch_nothing_off(folder: Path) -> None:
    earlier = yaml.safe_load((Path(__file__).parent / "data" / "bundles" / "cmerc" / CONFIG).read_text())["data"]
    assert earlier["audio"] == []
    spec = DataSpec.model_validate(earlier | {"format": "auto"})
    assert inputs(folder, spec) == {"text", "audio", "speaker"}


def test_a_named_format_keeps_the_data_section_of_the_bundle(folder: Path, tmp_path: Path) -> None:
    (folder / "table.yaml").unlink()
    bundle = bundle_with(tmp_path / "b", MAPPING)
    (sample,) = bundle_corpus(bundle, folder, "dialogue_table")
    assert sample.labels is not None
    assert sample.labels.tolist() == [1, 2]


def test_overrides_hold_beside_a_named_format(folder: Path, tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "b", {})
    (sample,) = bundle_corpus(bundle, folder, "dialogue_table", ["data.label=other", "data.audio=null"])
    assert sample.labels is not None
    assert sample.labels.tolist() == [2, 1]
    assert "audio" not in sample.inputs


def test_overrides_hold_where_the_section_is_of_another_format(folder: Path, tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "b", {"format": "cmerc", "dataset": "meld"})
    assert bundle_spec(bundle, folder, sets=["data.label=other"]).label == "other"
    assert bundle_spec(bundle, folder).dataset is None


@pytest.mark.parametrize("data_format", ["auto", "dialogue_table"])
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("data.audoi=null", "audoi"),
        ("data.context.sise=3", "context.sise"),
        ("label=mood", "write it as data.field=value"),
        ("data.emotions.zsl=3", "dialogue_table does not read it"),
        ("data.format=jsonl", "contradict|does not"),
    ],
)
def test_an_override_that_names_nothing_is_refused(folder: Path, data_format: str, said: str, message: str) -> None:
    if data_format == "auto" and "format" in said:
        pytest.skip("with no other format named it is honoured")
    with pytest.raises(UsageError, match=message):
        choose_spec(folder, data_format, DataSpec(), [said])


def test_a_named_format_that_the_data_are_not_in_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl")
    assert choose_spec(path, "jsonl", DataSpec()).format == "jsonl"
    for other in ("dialogue_table", "cmerc"):
        with pytest.raises(UsageError, match=f"is in the format jsonl: leave --data-format {other} out"):
            choose_spec(path, other, DataSpec())


def test_arrays_are_refused_where_the_data_bring_their_own(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl")
    with pytest.raises(UsageError, match="jsonl does not read it"):
        choose_spec(path, "auto", DataSpec(), ["data.audio={file: a.npy}"])
