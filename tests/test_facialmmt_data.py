"""Claims about facialmmt's files: packing, readers, caches, images, whole saved models."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from small_facialmmt import VARIANTS
from torch import nn

from mer_export import registry
from mer_export.data.media.faces import normalise, resize
from mer_export.data.open import detect, open_corpus
from mer_export.data.shapes.dialogue_text import pack
from mer_export.data.spec import DataSpec, FaceData
from mer_export.data.synthetic import synthesise
from mer_export.errors import InputError
from mer_export.importer import import_checkpoint
from mer_export.untrusted.pickles import load_pickle, load_records
from mer_export.weights import bundle_model, export_weights, load_checkpoint

SYSTEM = registry.get("facialmmt")
TABLE = registry.resolve(SYSTEM.weights)
SMALL = {"audio_dim": 5, "vision_dim": 4, "audio_len": 6, "vision_len": 5, "image_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("meld")
    synthesise("facialmmt", "meld", out, dialogues=12, seed=1, caches=True, **SMALL)
    return out


def reading(data: Path, packing: str = "bert", **values: object) -> DataSpec:
    return DataSpec(tokenizer=str(data / "tokenizer"), packing=packing, **values)


def test_a_dialogue_is_shortened_at_its_longest_utterance() -> None:
    packed = pack([[1] * 5, [2] * 9, [3]], "bert", 101, 102, longest=34 + 10)
    assert [int(packed.span(k)[1]) for k in range(3)] == [4, 5, 1]
    assert packed.span(3).tolist() == [0, 0]


def test_spans_point_at_the_words_of_the_utterance() -> None:
    for packing, size in (("bert", 7), ("roberta", 9)):
        packed = pack([[7, 8], [], [9]], packing, 0, 2)
        assert len(packed.ids) == size
        for words, k in (([7, 8], 0), ([], 1), ([9], 2)):
            start, count = packed.span(k)
            assert packed.ids[start : start + count].tolist() == words


def test_classes_are_matched_by_name_with_the_model(data: Path) -> None:
    own = open_corpus(data)
    names = own.info["labels"]
    turned = open_corpus(data, labels=names[::-1])
    assert turned.info["labels"] == names[::-1]
    pairs = [(int(a.labels[0]), int(b.labels[0])) for a, b in zip(own, turned, strict=True)]
    assert all(a + b == len(names) - 1 for a, b in pairs)
    with pytest.raises(InputError, match=r"has the classes .*, the model knows"):
        open_corpus(data, labels=["anger", "joy"])


def test_texts_from_sentences_and_from_a_cache_are_the_same(data: Path) -> None:
    fresh = open_corpus(data, reading(data))
    kept = open_corpus(data)
    assert detect(data, DataSpec()) == "facialmmt"
    for split, samples in fresh.splits.items():
        for a, b in zip(samples, kept.splits[split], strict=True):
            assert a.id == b.id
            assert {n: v.tolist() for n, v in a.inputs.items()} == {n: v.tolist() for n, v in b.inputs.items()}


def test_a_cache_alone_is_enough(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "T+A+V"
    folder.mkdir()
    name = "meld_multimodal_test_T+A+V_roberta-large.dt"
    (folder / name).write_bytes((data / "T+A+V" / name).read_bytes())
    found = open_corpus(tmp_path).split("test")
    wanted = open_corpus(data, reading(data, "roberta")).split("test")
    assert [s.inputs["text_span"].tolist() for s in found] == [s.inputs["text_span"].tolist() for s in wanted]
    assert [s.labels.tolist() for s in found] == [s.labels.tolist() for s in wanted]


@pytest.mark.parametrize("packing", ["bert", "roberta"])
def test_of_several_caches_the_one_of_the_packing_is_read(packing: str, data: Path, tmp_path: Path) -> None:
    found, wanted = (open_corpus(data, s).split("test") for s in (DataSpec(packing=packing), reading(data, packing)))
    assert [s.inputs["input_ids"].tolist() for s in found] == [s.inputs["input_ids"].tolist() for s in wanted]
    (tmp_path / "T+A+V").mkdir()
    name = f"meld_multimodal_test_T+A+V_{'bert' if packing == 'roberta' else 'roberta'}-large.dt"
    shutil.copy(data / "T+A+V" / name, tmp_path / "T+A+V")
    with pytest.raises(InputError, match=rf"packed for \w+ alone, data.packing is {packing}: put the .dt files"):
        open_corpus(tmp_path, DataSpec(packing=packing))


def test_vision_alone_is_read_from_its_own_folder(data: Path) -> None:
    found = open_corpus(data, DataSpec(modalities=("vision",)))
    # An utterance without a face stays, with nothing to read.
    assert {tuple(s.inputs) for s in found} == {("vision",), ()}


def test_faces_are_decoded_when_they_are_read(data: Path) -> None:
    found = open_corpus(data, reading(data, faces=FaceData(images=True, size=8)))
    sample = next(s for s in found if "images" in s.inputs)
    images = sample.inputs["images"]
    assert images.shape == (len(sample.inputs["vision"]), 3, 8, 8)
    assert np.asarray(images).dtype == np.float32
    assert np.abs(np.asarray(images)).max() <= 1
    moved = DataSpec(faces=FaceData(images=True, size=8, replace="faces/", root=str(data / "nowhere")))
    lost = next(s for s in open_corpus(data, moved) if "images" in s.inputs)
    with pytest.raises(InputError, match=r"nowhere.*cannot be read: No such file"):
        np.asarray(lost.inputs["images"])


def test_crops_are_scaled_by_areas_or_cubics() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, axis=2) * 10
    assert resize(image, 2)[:, :, 0].tolist() == [[25, 45], [105, 125]]
    assert np.array_equal(resize(np.full((3, 3, 3), 77, np.uint8), 8), np.full((8, 8, 3), 77, np.uint8))
    assert normalise(np.full((4, 4, 3), 255, np.uint8), 4).max() == 1


def test_annotated_faces_are_read_without_unusable_labels(tmp_path: Path) -> None:
    synthesise("facialmmt", "affwild", tmp_path, dialogues=6, seed=0, image_size=8)
    found = open_corpus(tmp_path, DataSpec(faces=FaceData(size=8)))
    lines = [line for f in (tmp_path / "annotations").rglob("*.txt") for line in f.read_text().splitlines()[1:]]
    assert len(list(found)) == sum(line not in ("-1", "7") for line in lines)
    assert np.asarray(next(iter(found)).inputs["images"]).shape == (3, 8, 8)
    turned = open_corpus(tmp_path, DataSpec(faces=FaceData(size=8)), found.info["labels"][::-1])
    assert {int(a.labels[0] + b.labels[0]) for a, b in zip(found, turned, strict=True)} == {6}


def test_json_lines_are_packed_in_the_same_way(data: Path, tmp_path: Path) -> None:
    said = [{"sentence": "w1 joy2"}, {"sentence": "w3", "vision": [[0, 1, 2, 3]]}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"dialogue": "c1", "utterances": said}) + "\n")
    first, second = open_corpus(tmp_path / "d.jsonl", reading(data))
    assert first.inputs["input_ids"].tolist() == second.inputs["input_ids"].tolist()
    assert second.inputs["text_span"].tolist() == [4, 1]
    assert second.inputs["vision"].shape == (1, 4)


SAID = {
    "missing split": "has no split",
    "mask": "ones, then zeros",
    "profile": "names dialogue 999",
    "not json": "is not JSON",
    "logits": r"dia0_utt0 is float32 \(\), expected numbers \(frames, classes\)",
    "damaged logits": "logits.npz is not a readable array file",
}


@pytest.mark.parametrize("damage", SAID)
def test_damaged_files_are_named(damage: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "T+A+V"
    folder.mkdir()
    for file in (data / "T+A+V").glob("*test*"):
        if file.is_file() and file.suffix != ".dt":
            (folder / file.name).write_bytes(file.read_bytes())
    audio, profile = folder / "meld_test_audio_utt.pkl", folder / "test_utt_profile.json"
    content = pickle.loads(audio.read_bytes())
    if damage == "missing split":
        audio.write_bytes(pickle.dumps({"train": content["test"]}))
    elif damage == "mask":
        content["test"]["audio_utt_mask"][0, :2] = [0, 1]
        audio.write_bytes(pickle.dumps(content))
    elif damage == "profile":
        profile.write_text(json.dumps({"0": ["dia0_utt0", "dia0", 999, 1, 0]}))
    elif "logits" in damage:
        logits = folder / "test_expression_logits.npz"
        np.savez(logits, dia0_utt0=np.ones((3000, 7) if damage == "damaged logits" else (), np.float32))
        if damage == "damaged logits":
            logits.write_bytes(logits.read_bytes().replace(b"\0\0\x80\x3f", b"\0\0\0\x40"))
    else:
        profile.write_text("{")
    with pytest.raises(InputError, match=SAID[damage]):
        open_corpus(tmp_path, reading(data))


class Planted:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("planted-by-a-pickle"),))


def test_nothing_in_a_saved_object_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2), "b": Planted()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not plain data"):
        load_pickle(tmp_path / "evil.pt")
    assert load_records(tmp_path / "evil.pt")["a"].tolist() == [1, 1]
    assert not (tmp_path / "planted-by-a-pickle").exists()
    whole = (tmp_path / "evil.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable torch archive"):
        load_records(tmp_path / "cut.pt")


def wrapped(model: nn.Module, monkeypatch: pytest.MonkeyPatch, name: str) -> nn.Module:
    """A model as Lightning Lite wraps it, its classes in modules that a reader does not have."""
    kinds = {}
    for full in ("lightning_lite.wrappers._LiteModule", "src.models.Some", "lightning_lite.plugins.Precision"):
        module, _, kind = full.rpartition(".")
        for i in range(module.count(".") + 1):
            part = ".".join(module.split(".")[: i + 1])
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        base = object if kind == "Precision" else nn.Module
        kinds[kind] = type(kind, (base,), {"__module__": module, "__qualname__": kind})
        setattr(sys.modules[module], kind, kinds[kind])
    inner = kinds["Some"]()
    for key, value in model.items():
        *path, leaf = key.split(".")
        at = inner
        for step in path:
            if step not in at._modules:
                at.add_module(step, nn.Module())
            at = at._modules[step]
        at.register_buffer(leaf, value)
    parallel = nn.DataParallel(inner)
    outer = kinds["_LiteModule"]()
    outer._forward_module, outer._original_module, outer._precision_plugin = parallel, inner, kinds["Precision"]()
    return outer


def test_a_wrapped_model_that_was_saved_whole_becomes_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SYSTEM.parse(VARIANTS["end_to_end"])
    torch.manual_seed(0)
    model = SYSTEM.build(config)
    state = export_weights(model, TABLE, config)
    files = []
    with monkeypatch.context() as patched:
        for name, own in (("fusion", False), ("swin", True)):
            part = {n.removeprefix("face/"): t for n, t in state.items() if n.startswith("face/") == own}
            files.append(tmp_path / f"{name}.pt")
            torch.save(wrapped(part, patched, name), files[-1])
    assert "_forward_module" not in "".join(load_checkpoint(files[0]))
    values = {k: v for k, v in VARIANTS["end_to_end"].items() if k not in ("audio_len", "vision_len", "buckets")}
    bundle, report = import_checkpoint("facialmmt", files, {"model": values}, tmp_path / "bundle")
    assert bundle.manifest.config["audio_len"] == 6
    assert report["own"] == 0
    found = bundle_model(bundle).state_dict()
    assert all(torch.equal(found[n], t) for n, t in model.state_dict().items())
