"""Paths that files name lead into the data or the bundle, and elsewhere only where the user says so."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from conftest import Mer
from onnx import TensorProto, helper
from small_bundle import make_bundle
from test_text_tokenizers import word_pieces

from mer_export.bundle import CONFIG, MANIFEST, Bundle, FileEntry, seal, sha256
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.formats.parquet.writer import write_parquet
from mer_export.data.media.faces import FaceImages
from mer_export.data.open import open_corpus
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.data.word_vectors import vectors_of
from mer_export.errors import BundleError, InputError, UsageError
from mer_export.exporters.encoders.file import import_file
from mer_export.untrusted.places import Allowed, Reach
from runtimes.backends.table import open_session
from train.config import load_config, resolve_config
from train.experiments.crossval import of_fold
from train.protocol import Before
from train.systems.cmerc.protocol import CmercProtocol
from train.systems.cmerc.settings import CmercSettings

BUNDLE = Path(__file__).parent / "data" / "bundles" / "cmerc"
ROW = {"call": "c1", "who": "a", "mood": "joy", "part": "train", "said": "hello", "wav": "a.wav", "faces": "crops"}
SAYS: dict[str, Any] = {
    "table": "u.csv",
    "dialogue": "call",
    "label": "mood",
    "label_names": ["joy"],
    "audio": {"file": "f.npy"},
}
REFUSED = "leads out of .*: pass --outside"


def lay(folder: Path, row: dict[str, str] | None = None, **says: Any) -> Path:
    """A data directory of one utterance whose table.yaml says so; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = ROW | (row or {})
    with (folder / "u.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([list(cells), list(cells.values())])
    np.save(folder / "f.npy", np.ones((1, 3), np.float32))
    (folder / "table.yaml").write_text(yaml.safe_dump(SAYS | says))
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder of the user's own, with everything that data may be made of."""
    folder = lay(tmp_path / "secret")
    np.savez(folder / "words.npz", words=np.asarray(["joy"]), embedding=np.ones((1, 2), np.float32))
    (folder / "crops").mkdir()
    (folder / "crops" / "0.png").write_bytes(b"")
    (folder / "a.wav").write_bytes(b"")
    word_pieces(folder / "tokenizer")
    return folder


WAYS: dict[str, Callable[[Path, str], str]] = {
    "absolute": lambda folder, name: f"{folder}/{name}",
    "upwards": lambda folder, name: f"../{folder.name}/{name}",
    "upwards from within": lambda folder, name: f"deeper/../../{folder.name}/{name}",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("u.csv", lambda name: {"table": name}),
        ("f.npy", lambda name: {"audio": {"file": name}}),
        ("f.npy", lambda name: {"inputs": {"tab_embedding": {"file": name}}}),
        ("tokenizer", lambda name: {"unit": "utterance", "sentence": "said", "tokenizer": name}),
        ("a.wav", lambda name: {"unit": "utterance", "context": {"recording": "said", "encoder": name}}),
        ("a.wav", lambda name: {"unit": "utterance", "context": {"recording": "said", "speech": name}}),
        ("crops", lambda name: {"unit": "utterance", "faces": {"images": True, "root": name}}),
    ],
)
def test_a_table_that_names_a_file_elsewhere_is_refused(
    tmp_path: Path, secret: Path, way: str, file: str, says: Callable[[str], dict[str, Any]]
) -> None:
    data = lay(tmp_path / "data", **says(WAYS[way](secret, file)))
    (data / "deeper").mkdir()
    with pytest.raises(InputError, match=REFUSED) as caught:
        open_corpus(data)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "file", "says"),
    [
        ("wav", "a.wav", {"unit": "utterance", "context": {"recording": "wav"}}),
        ("faces", "crops", {"unit": "utterance", "faces": {"images": True, "column": "faces"}}),
    ],
)
def test_a_cell_that_names_a_file_elsewhere_is_refused(
    tmp_path: Path, secret: Path, column: str, file: str, says: dict[str, Any]
) -> None:
    data = lay(tmp_path / "data", {column: f"{secret}/{file}"}, **says)
    with pytest.raises(InputError, match=REFUSED):
        open_corpus(data)


def test_a_split_is_no_way_out(tmp_path: Path, secret: Path) -> None:
    data = lay(tmp_path / "data", {"part": "../secret/f"}, split="part", audio={"file": "{split}.npy"})
    with pytest.raises(InputError, match=r"a split is called '\.\./secret/f'"):
        open_corpus(data)
    data = lay(tmp_path / "other", table="{split}.csv", splits=["../secret/u"])
    with pytest.raises(InputError, match="a split is called"):
        open_corpus(data)


def test_a_link_leads_no_further_than_a_name(tmp_path: Path, secret: Path) -> None:
    data = lay(tmp_path / "data", audio={"file": "linked.npy"})
    (data / "linked.npy").symlink_to(data / "f.npy")
    assert len(list(open_corpus(data))) == 1
    (data / "linked.npy").unlink()
    (data / "linked.npy").symlink_to(secret / "f.npy")
    with pytest.raises(InputError, match=REFUSED):
        open_corpus(data)


def test_a_file_of_each_utterance_stays_with_the_data_whatever_its_cells_say(tmp_path: Path, secret: Path) -> None:
    data = lay(tmp_path / "data", unit="utterance", audio={"file": "clips/{who}.npy"})
    (data / "clips").mkdir()
    np.save(data / "clips" / "a.npy", np.ones((2, 3), np.float32))
    assert [s.inputs["audio"].shape for s in open_corpus(data)] == [(2, 3)]
    (data / "clips" / "a.npy").unlink()
    (data / "clips" / "a.npy").symlink_to(secret)
    with pytest.raises(InputError, match=REFUSED):
        list(open_corpus(data))
    for named in ("../{who}.npy", f"{secret.parent}/{{who}}.npy"):
        with pytest.raises(InputError, match=REFUSED):
            list(open_corpus(lay(tmp_path / "other", unit="utterance", audio={"file": named})))
    with pytest.raises(InputError, match="which names no file"):
        list(open_corpus(lay(tmp_path / "cells", {"who": "../a"}, unit="utterance", audio={"file": "{who}.npy"})))


def test_a_tokenizer_that_the_data_bring_is_found_from_anywhere(tmp_path: Path) -> None:
    data = lay(tmp_path / "data", unit="utterance", sentence="said", tokenizer="tokenizer")
    word_pieces(data / "tokenizer")
    (sample,) = open_corpus(data)
    assert sample.inputs["input_ids"].ndim == 1


def test_word_vectors_are_looked_for_with_the_data_alone(tmp_path: Path, secret: Path) -> None:
    spec = DataSpec.model_validate({"emotions": {"vectors": "../secret/words.npz"}})
    with pytest.raises(InputError, match=REFUSED):
        vectors_of(spec, [lay(tmp_path / "data")])
    assert vectors_of(spec.allowing(Allowed.by([secret])), [tmp_path / "data"])["vectors"].keys() == {"joy"}


@pytest.mark.parametrize("given", [{"recording": "{}/a.wav"}, {"images": ["{}/crops/0.png"]}])
def test_json_lines_name_files_beside_them(tmp_path: Path, secret: Path, given: dict[str, Any]) -> None:
    named = json.loads(json.dumps(given).replace("{}", str(secret)))
    utterance = {"id": "u", "label": "joy", "audio": [1.0], "text_tokens": [1], "audio_tokens": [1]} | named
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "d.jsonl"
    file.write_text(json.dumps({"dialogue": "d", "utterances": [utterance]}) + "\n")
    spec = DataSpec.model_validate({"context": {}, "faces": {"images": True}})
    with pytest.raises(InputError, match=rf"d\.jsonl: line 1 names .*{REFUSED}"):
        open_corpus(file, spec)
    assert len(list(open_corpus(file, spec.allowing(Allowed.by([secret]))))) == 1


def test_parquet_names_files_beside_it(tmp_path: Path, secret: Path) -> None:
    pytest.importorskip("pyarrow")
    faces: Any = FaceImages([secret / "crops" / "0.png"], 8)
    sample = Sample("u", {"vision": np.ones((1, 2), np.float32), "images": faces}, ("u",))
    (tmp_path / "data").mkdir()
    write_parquet(Corpus({"all": [sample]}, "made", {}), tmp_path / "data" / "d.parquet")
    spec = DataSpec.model_validate({"faces": {"images": True}})
    with pytest.raises(InputError, match=REFUSED):
        open_corpus(tmp_path / "data" / "d.parquet", spec)
    assert len(list(open_corpus(tmp_path / "data" / "d.parquet", spec.allowing(Allowed.by([secret]))))) == 1


def test_lists_of_faces_stay_with_the_data_or_in_the_root_that_is_said(tmp_path: Path, secret: Path) -> None:
    from mer_export.data.synthetic import synthesise

    data = tmp_path / "data"
    synthesise("facialmmt", "meld", data, dialogues=6, seed=0, image_size=8)
    spec = DataSpec.model_validate({"faces": {"images": True, "size": 8}})
    assert list(open_corpus(data, spec))
    for file in (data / "T+A+V").glob("*_facseqs_160_paths_final.json"):
        file.write_text(file.read_text().replace("faces/", f"{secret}/"))
    with pytest.raises(InputError, match=REFUSED):
        open_corpus(data, spec)


@pytest.mark.parametrize("name", ["outside", "allowed", "_allowed", "typed"])
def test_no_file_can_say_what_the_user_may(tmp_path: Path, secret: Path, name: str) -> None:
    data = lay(tmp_path / "data", audio={"file": f"{secret}/f.npy"}, **{name: ["/"]})
    with pytest.raises(InputError, match="not permitted"):
        open_corpus(data)


def test_what_the_user_allows_outlives_every_copy_and_is_in_none_that_is_written(secret: Path) -> None:
    allowed = Allowed.by([secret], {"data": {"tokenizer": "mine"}})
    spec = DataSpec(unit="utterance", tokenizer="mine").allowing(allowed)
    for copy in (spec.over({}, "data"), spec.model_copy(), spec.over({"speakers": 3}, "data").allowing(Allowed())):
        assert copy.allowed == allowed
    assert set(spec.model_dump()) == {"unit", "tokenizer"}
    tab = resolve_config("tab", "iemocap", None, ["data.tokenizer=mine", "protocol.text_encoder=random"], [secret])
    assert of_fold(tab, 1).data.allowed == tab.data.allowed
    assert str(secret) in tab.data.allowed.folders


# What a configuration names


def config(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"base: synthetic/tab_iemocap\n{text}\n")
    return path


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("data: {tokenizer: {}}", "data.tokenizer"),
        ("data: {faces: {root: {}}}", "data.faces.root"),
        ("data: {context: {encoder: {}}}", "data.context.encoder"),
        ("data: {context: {speech: {}}}", "data.context.speech"),
        ("protocol: {text_encoder: {}, audio_encoder: random}", "protocol.text_encoder"),
        ("protocol: {audio_encoder: {}}", "protocol.audio_encoder"),
        ("protocol: {lhs: {}}", "protocol.lhs"),
        ("init: {}", "init"),
    ],
)
def test_a_configuration_file_names_nothing_that_the_user_has_not_said(
    tmp_path: Path, secret: Path, text: str, field: str
) -> None:
    data = lay(tmp_path / "data")
    file = config(tmp_path / "config" / "strange.yaml", text.replace("{}", str(secret)))
    with pytest.raises(InputError, match=REFUSED) as caught:
        load_config(file, data=data)
    assert field in str(caught.value)
    assert load_config(file, outside=[secret], data=data).system == "tab"
    lent = config(tmp_path / "config" / "own.yaml", text.replace("{}", str(data / "brought")))
    assert load_config(lent, data=data).system == "tab"


def test_what_the_user_types_is_theirs(tmp_path: Path, secret: Path) -> None:
    typed = [f"data.tokenizer={secret}", f"protocol.text_encoder={secret}", "protocol.audio_encoder=random"]
    assert resolve_config("tab", "iemocap", None, typed).data.tokenizer == str(secret)
    data = lay(tmp_path / "data", audio={"file": "f.npy"})
    bundle = make_bundle(tmp_path / "bundle")
    said = [f"data.audio={{file: {secret}/f.npy}}"]
    assert len(list(open_corpus(data, bundle_spec(bundle, data, sets=said)))) == 1
    with pytest.raises(InputError, match=REFUSED):
        open_corpus(lay(data, audio={"file": f"{secret}/u.csv"}), bundle_spec(bundle, data, sets=["data.speakers=3"]))


def test_difficulties_of_a_curriculum_come_with_the_data(tmp_path: Path, secret: Path) -> None:
    data = lay(tmp_path / "data")
    (secret / "d.json").write_text(json.dumps({"c1": 0.5}))
    rule: Any = {"epoch_ratio": 0.5, "difficulty": "../secret/d.json"}
    protocol = CmercProtocol(CmercSettings(curriculum=rule))
    before = Before(data, Reach(data), None, [], lambda *_: pytest.fail("nothing is measured"))
    with pytest.raises(InputError, match=REFUSED):
        protocol.find_difficulty(before)
    allowed = replace(before, reach=Reach(data, Allowed.by([secret])))
    assert protocol.find_difficulty(allowed) == {"c1": 0.5}


# What a bundle names


def with_config(bundle: Bundle, section: dict[str, Any]) -> Bundle:
    """The bundle of a stranger, whose configuration says how to read data."""
    with bundle.commit() as change:
        change.write(CONFIG, yaml.safe_dump({"data": section}))
    return Bundle.open(bundle.root)


@pytest.mark.parametrize(
    "section", [{"tokenizer": "{}"}, {"faces": {"images": True, "root": "{}"}}, {"context": {"speech": "{}"}}]
)
def test_a_bundle_names_folders_of_its_own_alone(tmp_path: Path, secret: Path, section: dict[str, Any]) -> None:
    said = json.loads(json.dumps(section).replace("{}", str(secret)))
    bundle, data = with_config(make_bundle(tmp_path / "bundle"), said), lay(tmp_path / "data")
    with pytest.raises(InputError, match=REFUSED):
        bundle_spec(bundle, data)
    assert bundle_spec(bundle, data, outside=[secret]).folders


def test_a_link_among_the_tokenizers_of_a_bundle_is_refused(tmp_path: Path, secret: Path) -> None:
    bundle, data = make_bundle(tmp_path / "bundle"), lay(tmp_path / "data")
    with bundle.commit() as change:
        change.write("tokenizer/vocab.txt", (secret / "tokenizer" / "vocab.txt").read_bytes())
    assert bundle_spec(Bundle.open(bundle.root), data).tokenizer == str(bundle.root / "tokenizer")
    (bundle.root / "tokenizer" / "tokenizer.json").symlink_to(secret / "u.csv")
    with pytest.raises(BundleError, match="symbolic link"):
        bundle_spec(Bundle.open(bundle.root), data)


def test_the_command_line_says_it_and_takes_it(mer: Mer, tmp_path: Path, secret: Path) -> None:
    data = lay(tmp_path / "data", audio={"file": f"{secret}/f.npy"})
    code, _, err = mer("inspect", data)
    assert code == 2
    assert f"pass --outside '{secret}' if it may be read" in err
    assert mer("inspect", data, "--outside", secret)[0] == 0
    out = tmp_path / "d.parquet"
    assert mer("data", "convert", data, "--out", out)[0] == 2
    assert mer("data", "convert", data, "--out", out, "--outside", secret)[0] == 0


def outside_model() -> onnx.ModelProto:
    """A model whose only weights lie in a file of the user's."""
    tensor = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../secret/f.npy")
    value = helper.make_tensor_value_info("a", 1, [2])
    return helper.make_model(
        helper.make_graph([helper.make_node("Add", ["a", "w"], ["b"])], "g", [value], [value], [tensor])
    )


@pytest.mark.parametrize("name", ["model.bin", "model", "model.onnx", "model.ort"])
@pytest.mark.parametrize("stages", [(), ("one", "two")])
def test_an_onnx_model_is_checked_under_any_name(tmp_path: Path, name: str, stages: tuple[str, ...]) -> None:
    bundle = Bundle.open(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    variant = next(v for v in bundle.manifest.variants if v.format == "onnx")
    places = [f"variants/x/{s}/{name}" for s in stages] or [f"variants/x/{name}"]
    for place in places:
        path = bundle.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of several stages only the first one is hostile.
        model = outside_model() if place == places[0] else onnx.load(bundle.root / variant.model)
        path.write_bytes(model.SerializeToString())
        bundle.manifest.files[place] = FileEntry(size=path.stat().st_size, sha256=sha256(path))
    forged = variant.model_copy(update={"model": places[-1], "stages": stages})
    bundle.manifest.variants = [forged]
    (bundle.root / MANIFEST).write_bytes(seal(bundle.manifest))
    with pytest.raises(BundleError, match=r"reads '\.\./\.\./\.\./secret/f\.npy', which is not a file of this bundle"):
        open_session(Bundle.open(bundle.root), forged, "onnxruntime")


def test_an_encoder_file_reads_what_lies_beside_it_alone(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    recipe = {"input": {"kind": "picture", "height": 1, "width": 1}, "source": {"name": "a"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "model.onnx").write_bytes(outside_model().SerializeToString())
    with pytest.raises(InputError, match=REFUSED):
        import_file(folder / "model.onnx", tmp_path / "recipe.yaml", tmp_path / "out")
    (folder / "model.onnx").write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not an ONNX file"):
        import_file(folder / "model.onnx", tmp_path / "recipe.yaml", tmp_path / "out")


def test_utterances_of_the_authors_files_are_names_not_paths(tmp_path: Path) -> None:
    (tmp_path / "labels_train_t.txt").write_text("1_F_s_1_ang/../../secret/u.csv\t0\n")
    with pytest.raises((InputError, UsageError), match="line 1"):
        open_corpus(tmp_path, DataSpec(format="tab"))
