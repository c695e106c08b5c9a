"""Several layers of a text network as a vector each, as cmerc reads them: from transcripts to labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("pyarrow")

import torch
from conftest import Mer

from benchmarks.small_encoders import save_folder
from mer_export.bundle import Bundle
from mer_export.data.open import open_corpus
from mer_export.encoders.attached import check, together
from mer_export.encoders.encoder import Encoder
from mer_export.errors import UsageError
from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder
from runtimes.encode import open_encoder

TURNS = 12
LAYERS = (2, 1, 0)
"""The last one first, as in the authors' files."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roberta")
    save_folder("roberta", folder)
    return folder


def table(path: Path, labelled: bool) -> Path:
    """Dialogues of three turns."""
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "dialogue", "speaker", "sentence", *(["label", "split"] if labelled else [])])
        for turn in range(TURNS):
            said = ["hello there you", "a", "the quick brown fox"][turn % 3]
            row = [f"u{turn}", f"d{turn // 3}", "ab"[turn % 2], said]
            rows.writerow([*row, *((("joy", "anger")[turn % 2], "test" if turn > 8 else "train") if labelled else ())])
    return path


def test_stacked_layers_are_those_of_the_package_in_the_order_asked_for(source: Path, tmp_path: Path) -> None:
    import transformers

    network = transformers.RobertaModel.from_pretrained(source, add_pooling_layer=False).eval()
    wanted = Wanted(layers=LAYERS, stack=True, pooling="first", longest=16, unit=True)
    bundle = import_folder(source, tmp_path / "encoder", wanted)
    with open_encoder(bundle.root, "torch") as encoding:
        (found,) = encoding.encode(["hello there you"])
        ids = torch.from_numpy(encoding.encoder.tokenizer.encode("hello there you"))[None]
    with torch.no_grad():
        states = network(input_ids=ids, output_hidden_states=True).hidden_states
    rows = [torch.nn.functional.normalize(states[n][0, 0], dim=-1).numpy() for n in LAYERS]
    np.testing.assert_allclose(found, np.stack(rows), atol=1e-5)


def test_transcripts_train_cmerc_and_are_answered_by_it(mer: Mer, source: Path, tmp_path: Path) -> None:
    encoder, data, run = tmp_path / "encoder", tmp_path / "f.parquet", tmp_path / "run"
    layers = [w for n in LAYERS for w in ("--layer", str(n))]
    said = ["--stack", "--pooling", "first", "--longest", "16", "--length", "16"]
    assert mer("encoder", source, "-o", encoder, *layers, *said, "-q")[0] == 0
    clips = table(tmp_path / "clips.csv", labelled=True)
    code, _, err = mer("features", clips, "--encoder", f"text={encoder}", "--out", data, "-q")
    assert code == 0, err
    assert {s.inputs["text"].shape for s in open_corpus(data)} == {(3, 3, 32)}
    small = ["--set", "epochs=1", *(w for n in ("width", "hidden") for w in ("--set", f"model.{n}=8"))]
    small += [w for n in ("hypergraph", "frequency") for w in ("--set", f"model.{n}_layers=1")]
    code, _, err = mer("train", "cmerc", "--data", data, "--out", run, *small, "-q")
    assert code == 0, err
    manifest = json.loads((run / "bundle.json").read_text())
    assert (manifest["config"]["text_vectors"], list(manifest["encoders"])) == (3, ["text"])
    assert mer("export", run, "--seq-len", "utterances=3", "-q")[0] == 0
    answers = []
    for name, given in (("stored", data), ("read", table(tmp_path / "new.csv", labelled=False))):
        code, _, err = mer("infer", run, given, "-o", tmp_path / f"{name}.jsonl", "--runtime", "onnxruntime", "-q")
        assert code == 0, err
        answers.append([json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()])
    stored, read = ({a["unit"]: a for a in found} for found in answers)
    assert len(read) == TURNS
    for name, answer in stored.items():
        assert answer["label"] == read[name]["label"]
        scores = [list(a["probabilities"].values()) for a in (answer, read[name])]
        np.testing.assert_allclose(*scores, atol=1e-5)
    single = Encoder.of(import_folder(source, tmp_path / "single", Wanted(longest=16)))
    with pytest.raises(UsageError, match=r"text has 3 vectors of an item, roberta0 gives 1: make one with"):
        check(Bundle.open(run), {"text": [single]}, force=True)
    assert together([single]).sha256 != Encoder.open(encoder).identity.sha256


def test_only_a_text_that_is_pooled_has_several_vectors(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"vectors is 2, pooling none: several vectors are those of a sentence"):
        import_folder(source, tmp_path / "e", Wanted(layers=(1, 2), stack=True, pooling="none"))
    save_folder("vit", tmp_path / "vit")
    with pytest.raises(UsageError, match="several vectors are those of a sentence"):
        import_folder(tmp_path / "vit", tmp_path / "e", Wanted(layers=(1, 2), stack=True))
