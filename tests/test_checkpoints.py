"""Checkpoints as people's training scripts write them become the same bundle; what cannot be one is named."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import json
import pathlib
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_emt import BERT, CONFIGS
from torch import nn

from mer_export import registry
from mer_export.checkpoints import read_checkpoint, usual_state
from mer_export.errors import InputError, UsageError
from mer_export.importer import import_checkpoint
from mer_export.layers.bert.config import BertConfig
from mer_export.layers.bert.folder import SETTINGS
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.pretrained import load_pretrained
from mer_export.layers.bert.weights import renames
from mer_export.weights import bundle_model, export_weights

SYSTEM = "mult"
VALUES: dict[str, Any] = registry.get(SYSTEM).parse(CONFIGS["mult"][1]).model_dump(mode="json")
State = dict[str, torch.Tensor]


def network() -> tuple[nn.Module, State]:
    """A small network and its state_dict with the authors' names."""
    system = registry.get(SYSTEM)
    config = system.parse(VALUES)
    torch.manual_seed(1)
    model = system.build(config)
    state = export_weights(model, registry.resolve(system.weights), config)
    return model, {n: t.detach().clone() for n, t in state.items()}


@functools.cache
def known() -> tuple[nn.Module, State]:
    return network()


def imported(path: Path, folder: Path, **options: Any) -> nn.Module:
    bundle, report = import_checkpoint(SYSTEM, path, {"model": VALUES}, folder / "bundle", **options)
    assert report["own"] == 0
    return bundle_model(bundle)


def same(found: nn.Module, bits: int = 32) -> bool:
    """Equal to the network that was saved, to the precision of a float of so many bits."""
    limits = {32: 0.0, 16: 1e-3, 8: 1e-2}[bits]
    wanted = known()[0].state_dict()
    assert all(t.dtype == wanted[n].dtype for n, t in found.state_dict().items())
    return all(torch.allclose(t, wanted[n], rtol=limits, atol=limits) for n, t in found.state_dict().items())


class Trained(nn.Module):
    """An authors' module whose entries have these names; pickled whole, its class is unknown to a reader."""

    def __init__(self, state: State, buffers: bool = True):
        super().__init__()
        for name, tensor in state.items():
            *path, leaf = name.split(".")
            at: nn.Module = self
            for step in path:
                if step not in at._modules:
                    at.add_module(step, nn.Module())
                at = at._modules[step]  # type: ignore[assignment]
            if tensor.is_floating_point():
                at.register_parameter(leaf, nn.Parameter(tensor))
            else:
                at.register_buffer(leaf, tensor)
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.criterion = functools.partial(print, end="")


class Phase(collections.namedtuple("Phase", "name number")):
    """A class of the authors' own."""


def prefixed(*prefixes: str) -> Callable[[State], Any]:
    return lambda state: {"".join(prefixes) + n: t for n, t in state.items()}


def under(*keys: str) -> Callable[[State], Any]:
    def wrap(state: State) -> Any:
        found: Any = collections.OrderedDict(state)
        for key in reversed(keys):
            found = {"epoch": 3, key: found, "best": 0.61}
        return found

    return wrap


def beside(state: State) -> dict[str, Any]:
    """Everything that scripts keep beside weights."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return {
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "optimizer_itself": optimizer,
        "scheduler": scheduler.state_dict(),
        "scheduler_itself": scheduler,
        "args": argparse.Namespace(lr=1e-3, out=pathlib.Path("runs"), nested=argparse.Namespace(a=1)),
        "started": datetime.datetime(2024, 5, 1, 12),
        "score": np.float64(0.61),
        "steps": np.int64(7),
        "history": collections.defaultdict(list, {"loss": [np.float32(0.5)]}),
        "seen": collections.Counter("abca"),
        "log": collections.deque([1, 2], maxlen=2),
        "phase": Phase("fine", 2),
        "table": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        "ragged": np.array([[1, 2], [3, None]], dtype=object),
        "random": (random.getstate(), np.random.default_rng(0), np.random.get_state(), torch.get_rng_state()),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "shape": torch.Size([2, 3]),
        "loss": nn.CrossEntropyLoss(weight=torch.ones(3)),
        "function": print,
        "sparse": torch.eye(3).to_sparse(),
        3: "a key that is no text",
    }


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 4,
        "global_step": 100,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": {f"model.{n}": t for n, t in state.items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.6), "dirpath": pathlib.Path("x")}
        },
        "optimizer_states": [torch.optim.SGD([torch.zeros(2)], lr=0.1, momentum=0.9).state_dict()],
        "lr_schedulers": [{"last_epoch": 4}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "where": pathlib.Path("data")},
    }


def tied(state: State) -> State:
    """All tensors of one shape and value are one tensor, all vectors are views of one storage."""
    vectors = {n: t for n, t in state.items() if t.ndim == 1 and t.dtype == torch.float32}
    store, at, found = torch.cat([torch.zeros(5), *vectors.values()]), 5, dict(state)
    for name, tensor in vectors.items():
        found[name] = store[at : at + len(tensor)]
        at += len(tensor)
    return found


def views(state: State) -> State:
    """Matrices lie transposed or with gaps."""
    return {n: t.T.contiguous().T if i % 2 else _gappy(t) for i, (n, t) in enumerate(state.items()) if t.ndim == 2} | {
        n: t for n, t in state.items() if t.ndim != 2
    }


def _gappy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]


def averaged(state: State) -> Any:
    return {"n_averaged": torch.tensor(7)} | {f"module.{n}": t for n, t in state.items()}


def converted(kind: torch.dtype) -> Callable[[State], State]:
    return lambda state: {n: t.to(kind) if t.is_floating_point() else t for n, t in state.items()}


def compiled_part(state: State) -> State:
    """One module inside the network was compiled, another ran in parallel."""
    first = sorted({n.split(".")[1] for n in state if n.count(".") > 1})
    marks = dict(zip(first, ("_orig_mod.", "module.", "_checkpoint_wrapped_module."), strict=False))
    return {
        ".".join((n.split(".")[0], n.split(".")[1], marks.get(n.split(".")[1], "") + n.split(".", 2)[2]))
        if n.count(".") > 1
        else n: t
        for n, t in state.items()
    }


FORMS: dict[str, tuple[Callable[[State], Any], int]] = {
    "state_dict": (dict, 32),
    "OrderedDict with versions": (lambda state: Trained(state).state_dict(), 32),
    "module. (DataParallel)": (prefixed("module."), 32),
    "model. (Lightning)": (prefixed("model."), 32),
    "_orig_mod. (torch.compile)": (prefixed("_orig_mod."), 32),
    "module._orig_mod. (both)": (prefixed("module.", "_orig_mod."), 32),
    "net.backbone.encoder. (nested)": (prefixed("net.", "backbone.", "encoder."), 32),
    "wrappers inside the names": (compiled_part, 32),
    "AveragedModel": (averaged, 32),
    "state_dict key": (under("state_dict"), 32),
    "model_state_dict key": (under("model_state_dict"), 32),
    "model key": (under("model"), 32),
    "net key": (under("net"), 32),
    "ema_state_dict key": (under("ema_state_dict"), 32),
    "checkpoint.model.state_dict keys": (under("checkpoint", "model", "state_dict"), 32),
    "list of state_dicts": (lambda state: [state, {"lr": 0.1}], 32),
    "everything beside": (beside, 32),
    "Lightning checkpoint": (lightning, 32),
    "half": (converted(torch.float16), 16),
    "bfloat16": (converted(torch.bfloat16), 8),
    "double": (converted(torch.float64), 32),
    "parameters": (lambda state: {n: nn.Parameter(t) if t.is_floating_point() else t for n, t in state.items()}, 32),
    "shared storages": (tied, 32),
    "views": (views, 32),
    "numpy arrays": (lambda state: {n: t.numpy() for n, t in state.items()}, 32),
    "whole module": (Trained, 32),
    "whole module in DataParallel": (lambda state: nn.DataParallel(Trained(state)), 32),
    "whole module, half, under a key": (lambda state: {"model": Trained(state).half(), "optimizer": None}, 16),
    "names beside other values": (lambda state: {**state, "epoch": 3, "rng": [torch.get_rng_state()]}, 32),
    "tensors with attributes": (lambda state: {n: _marked(t) for n, t in state.items()}, 32),
}
"""Forms of checkpoints: how one is made, and the bits of its numbers. docs/data.md has the table."""


def _marked(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.note = "kept by a script"  # type: ignore[attr-defined]
    return tensor


WRITERS: dict[str, Callable[[Any, Path], object]] = {
    "zip": torch.save,
    "before 2020": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_becomes_the_same_bundle(tmp_path: Path, form: str, writer: str) -> None:
    make, bits = FORMS[form]
    WRITERS[writer](make(known()[1]), tmp_path / "model.pt")
    assert same(imported(tmp_path / "model.pt", tmp_path), bits)


def sharded(state: State, path: Path, suffix: str) -> Path:
    """Two parts and their index, as `transformers` writes large models."""
    names, parts = list(state), {}
    for i, own in enumerate((names[::2], names[1::2]), start=1):
        part = f"model-0000{i}-of-00002{suffix}"
        tensors = {n: state[n].contiguous() for n in own}
        save_file(tensors, path / part) if suffix == ".safetensors" else torch.save(tensors, path / part)
        parts |= dict.fromkeys(own, part)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    index = path / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": parts}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_parts_are_read_from_their_index_or_their_folder(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "parts").mkdir()
    index = sharded(known()[1], tmp_path / "parts", suffix)
    for path in (index, tmp_path / "parts"):
        bundle, _ = import_checkpoint(SYSTEM, path, {"model": VALUES}, tmp_path / "bundle", force=True)
        assert same(bundle_model(bundle))
        assert bundle.manifest.provenance["file"].count("-of-00002") == 2
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = "../outside.bin"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"names \['\.\./outside\.bin'\], which are not files beside it"):
        imported(index, tmp_path, force=True)


def test_parts_of_two_saves_are_refused(tmp_path: Path) -> None:
    index = sharded(known()[1], tmp_path, ".safetensors")
    name = next(iter(known()[1]))
    parts = sorted({*json.loads(index.read_text())["weight_map"].values()})
    save_file({n: t.contiguous() for n, t in known()[1].items()}, tmp_path / parts[1])
    with pytest.raises(InputError, match=f"{name} is in {parts[1]} and in a part before it"):
        imported(index, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model"])
def test_what_a_file_is_decides_and_not_its_ending(tmp_path: Path, name: str) -> None:
    save_file(known()[1], tmp_path / name)
    assert same(imported(tmp_path / name, tmp_path))
    torch.save(known()[1], tmp_path / name)
    bundle, _ = import_checkpoint(SYSTEM, tmp_path / name, {"model": VALUES}, tmp_path / "again")
    assert same(bundle_model(bundle))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_pickles_of_tensors_are_checkpoints_too(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": known()[1]}, protocol=protocol))
    assert same(imported(tmp_path / "model.pkl", tmp_path))


# Errors


def test_two_sets_of_weights_that_fit_are_named_and_chosen_by_key(tmp_path: Path) -> None:
    state = known()[1]
    other = {n: t + 1 if t.is_floating_point() and t.ndim == 2 else t for n, t in state.items()}
    torch.save({"model": other, "ema": {"module": state}, "epoch": 2}, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=r"holds several sets of weights that fit: model, ema\.module; .*--key"):
        imported(tmp_path / "model.pt", tmp_path)
    assert same(imported(tmp_path / "model.pt", tmp_path, key="ema.module"))
    with pytest.raises(UsageError, match=r"no weights under 'teacher', there are \['model', 'ema\.module'\]"):
        import_checkpoint(SYSTEM, tmp_path / "model.pt", {"model": VALUES}, tmp_path / "c", key="teacher")


def test_one_set_under_two_keys_is_one(tmp_path: Path) -> None:
    state = known()[1]
    torch.save({"model": state, "ema": {n: t.clone() for n, t in state.items()}}, tmp_path / "model.pt")
    assert same(imported(tmp_path / "model.pt", tmp_path))


def test_more_sets_than_anybody_keeps_in_a_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "many.pkl"
    file.write_bytes(pickle.dumps({str(k): {"weight": np.full(1, k, np.float32)} for k in range(65)}))
    with pytest.raises(InputError, match=r"many\.pkl holds more than 64 tables of tensors: save the one that is meant"):
        read_checkpoint(file)


def test_the_set_that_fits_wins_over_one_that_does_not(tmp_path: Path) -> None:
    teacher = {n: torch.zeros(2, 2) for n in known()[1]}
    torch.save({"model": teacher, "student": known()[1]}, tmp_path / "model.pt")
    assert same(imported(tmp_path / "model.pt", tmp_path))


def test_an_error_lists_the_keys_of_the_file(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "weights": {"a.b": 1.5}, "optimizer": {"param_groups": []}}, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=r"holds no state_dict.*epoch: int; weights: dict \(a\.b, \.\.\.\); optimizer"):
        imported(tmp_path / "model.pt", tmp_path)
    torch.save({"generator": {"a.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(
        UsageError, match=r"unexpected a\.weight; model\.pt holds generator: dict \(a\.weight, \.\.\.\)"
    ):
        imported(tmp_path / "model.pt", tmp_path)


def test_an_entry_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    state: dict[str, Any] = dict(known()[1])
    name = next(n for n, t in state.items() if t.ndim == 2)
    state[name] = state[name].to_sparse()
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=rf"missing {name}.*{name} is a torch\._utils\._rebuild_sparse_tensor, not a"):
        imported(tmp_path / "model.pt", tmp_path)


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("planted-by-a-checkpoint"),))


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_beside_the_weights_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS[writer]({"model": known()[1], "callbacks": [Planted()], Phase("a", 1): Planted()}, tmp_path / "model.pt")
    assert same(imported(tmp_path / "model.pt", tmp_path))
    assert not (tmp_path / "planted-by-a-checkpoint").exists()


def test_half_of_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        write({"model": known()[1]}, tmp_path / "model.pt")
        content = (tmp_path / "model.pt").read_bytes()
        for share in (0.1, 0.5, 0.9, 0.999):
            (tmp_path / "model.pt").write_bytes(content[: int(share * len(content))])
            with pytest.raises(InputError, match="truncated or damaged"):
                imported(tmp_path / "model.pt", tmp_path / name)


def test_where_no_network_decides_the_usual_key_is_taken(tmp_path: Path) -> None:
    weights, other = {"a.weight": torch.ones(2)}, {"b.weight": torch.zeros(2)}
    torch.save({"model": {f"module.{n}": t for n, t in weights.items()}, "ema": other}, tmp_path / "a.pt")
    assert list(usual_state(read_checkpoint(tmp_path / "a.pt"))) == ["a.weight"]
    torch.save({"first": weights, "second": other}, tmp_path / "b.pt")
    with pytest.raises(UsageError, match="several sets of weights"):
        usual_state(read_checkpoint(tmp_path / "b.pt"))


# Encoder folders


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("prefix", ["", "bert.", "module.bert."])
def test_encoder_folders_load_in_parts_and_from_bin(tmp_path: Path, suffix: str, parts: bool, prefix: str) -> None:
    source, target = Bert(BertConfig(**BERT)), Bert(BertConfig(**BERT))
    config = {theirs: getattr(source.config, ours) for theirs, ours in SETTINGS.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = source.state_dict()
    state = {f"{prefix}{theirs}": own[ours].clone() for theirs, ours in renames(source.config, "", "").items()}
    if parts:
        sharded(state, tmp_path, suffix)
    elif suffix == ".bin":
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        save_file(state, tmp_path / "model.safetensors")
    load_pretrained(target, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(own.values(), target.state_dict().values(), strict=True))
