"""Readers of strangers' bytes on files that were damaged: a value or one sentence, never a crash."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import mutations
from safetensors.numpy import save_file
from test_untrusted import READERS

from mer_export.data.media.sound import write_sound
from mer_export.errors import MerError
from mer_export.untrusted.hdf5 import save_hdf5

MUTATIONS = 150
"""Of each file in this run; `python tests/test_untrusted_damage.py 2000 [NAME ...]` does a long one."""


def samples(folder: Path) -> dict[str, bytes]:
    """A small sound file for each reader."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    array = rng.normal(size=(4, 3)).astype(np.float32)
    state = {"a.weight": torch.from_numpy(array), "a.bias": torch.zeros(4)}
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    nested = {"train": {"text": array, "id": ["a", "b"], "labels": np.arange(3)}, "counts": Counter("ab")}
    (folder / "x.pkl").write_bytes(pickle.dumps(nested))
    torch.save(nested | {"t": state["a.weight"]}, folder / "x.pt")
    torch.save(model, folder / "model.pt")
    torch.save(
        {"model": state, "optimizer": torch.optim.Adam(model.parameters()).state_dict()}, folder / "checkpoint.pt"
    )
    torch.save(nested | {"t": state["a.weight"]}, folder / "old.pt", _use_new_zipfile_serialization=False)
    np.save(folder / "x.npy", array)
    np.savez_compressed(folder / "x.npz", a=array, b=np.asarray(["x", "y"]))
    save_file({"a": array}, folder / "x.safetensors")
    (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    (folder / "x.json").write_text(json.dumps({"a": [1, 2.5, {"b": None}], "c": "text"}))
    (folder / "vectors.json").write_text(json.dumps({"joy": [0.5, 1.0], "sad": [1.5, -2.0]}))
    (folder / "vectors.txt").write_text("joy 0.5 1.0\nsad 1.5 -2.0\n")
    (folder / "x.yaml").write_text("table: a.csv\naudio: {file: f.npz, array: a}\nlabels: [joy, sad]\n")
    line = {"dialogue": "d1", "utterances": [{"id": "u1", "audio": [1.0, 2.0], "label": 0}]}
    (folder / "x.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(line | {'dialogue': 'd2'})}\n")
    (folder / "x.csv").write_text('id,said,label\n1,"a, b",joy\n2,c,sad\n')
    (folder / "x.tsv").write_text("id\tsaid\tlabel\n1\ta\tjoy\n")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": [1, 2], "label": ["joy", "sad"]}), folder / "x.parquet")
    save_hdf5(folder / "x.h5", "d1", array)
    write_sound(folder / "x.wav", rng.integers(-99, 99, 200), 16000)
    Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / "x.png")
    import onnx.helper as make

    shape = make.make_tensor_value_info("a", 1, [1])
    tensor = make.make_tensor("w", 1, [1], [1.0])
    graph = make.make_graph([make.make_node("Add", ["a", "w"], ["b"])], "g", [shape], [shape], [tensor])
    (folder / "x.onnx").write_bytes(make.make_model(graph).SerializeToString())
    return {name: (folder / name).read_bytes() for name in READERS}


def read_mutated(name: str, content: bytes, folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """How many damaged files gave a value and how many a sentence; anything else is raised."""
    read, outcomes = READERS[name], Counter[str]()
    for changed in mutations(content, count, seed):
        (folder / name).write_bytes(changed)
        try:
            read(folder / name)
            found = "value"
        except MerError as error:
            found = "sentence" if error.exit_code == 2 and "\n" not in str(error) else repr(error)
        outcomes[found] += 1
    return outcomes


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    samples(folder)
    return folder


@pytest.mark.parametrize("name", READERS)
def test_damage_gives_a_value_or_a_sentence(written: Path, tmp_path: Path, name: str) -> None:
    READERS[name](written / name)
    damaged = Path(shutil.copytree(written, tmp_path / "damaged"))
    found = read_mutated(name, (written / name).read_bytes(), damaged, MUTATIONS)
    assert {"sentence"} <= set(found) <= {"value", "sentence"}


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    for reader in sys.argv[2:] or READERS:
        with TemporaryDirectory() as place:
            whole = samples(Path(place))
            print(reader, dict(read_mutated(reader, whole[reader], Path(place), int(sys.argv[1]), seed=1)), flush=True)
