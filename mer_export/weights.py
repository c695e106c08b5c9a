"""Weights in and out: the bundle's own, and foreign checkpoints through one strict table of names per system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


def as_it_is(config: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors load their checkpoints without further ado."""
    return state


@dataclass(frozen=True)
class WeightMap:
    """The correspondence of an authors' checkpoint and a network, by config.

    `renames` maps authors' names to ours; several names of one shared tensor lead to the same one of ours. `unused`
    gives the shapes of weights never read, which are written as zeros; `constants` the entries that are not learnt,
    written as they are; `ignored` the shapes of entries that some versions have, never written. A checkpoint may lack
    all three. `prepare` does to a checkpoint what the authors' own code does to it before loading. Where several files
    make one network, `part` gives what stands before the names of one of them. `fit` completes the values of a
    configuration with sizes that only the checkpoint knows.
    """

    renames: Callable[[Any], dict[str, str]]
    unused: Callable[[Any], dict[str, tuple[int, ...]]]
    ignored: Callable[[Any], dict[str, tuple[int, ...]]] = lambda config: {}
    constants: Callable[[Any], dict[str, Tensor]] = lambda config: {}
    prepare: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]] = as_it_is
    part: Callable[[dict[str, Tensor]], str] = lambda state: ""
    fit: Callable[[dict[str, Any], dict[str, Tensor]], dict[str, Any]] = lambda values, state: values


def bundle_model(bundle: Bundle) -> nn.Module:
    """The PyTorch model of a bundle: float32, CPU, evaluation mode."""
    from safetensors.torch import load_model

    system = registry.get(bundle.manifest.system)
    model = system.build(system.parse(bundle.manifest.config))
    load_model(model, bundle.path(WEIGHTS))
    return model.eval()


def load_from_bundle(model: nn.Module, path: Path | str) -> None:
    """Loads a bundle's weights into a network of the same system, in place, statistics of its inputs included.

    Raises:
        BundleError: no bundle, or a damaged one.
        UsageError: its network has other entries; names the first.
    """
    import torch

    with torch.random.fork_rng(devices=[]):  # a network with fresh weights draws numbers, and this one is not trained
        state = bundle_model(Bundle.open(path)).state_dict()
    own = model.state_dict()
    wrong = [n for n in own | state if n not in own or n not in state or own[n].shape != state[n].shape]
    if wrong:
        raise UsageError(f"{path} holds another network: {wrong[0]} differs, train with the same model settings")
    model.load_state_dict(state)


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """A state_dict from a torch or safetensors file, a plain pickle of tensors, or a model that was saved whole.

    It stands alone, or under `model` or `state_dict`. Nothing is executed: of a whole model only parameters and
    buffers are read, without its wrappers' prefixes.
    """
    return load_arguments(path)[1]


def load_arguments(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The training arguments that stand beside a state_dict (none where there are none), and the state_dict.

    Raises:
        UsageError: no such file, or one that holds something else.
    """
    import argparse
    import pickle
    import warnings

    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return {}, load_file(path)
        # A namespace of arguments holds plain attributes; loading it runs nothing.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # remarks on pickle protocols; what cannot be read is an error below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        state = _plain_pickle(path)
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is not a checkpoint of plain tensors, it was not loaded: {reason}") from None
    arguments: Any = {}
    inner = next(
        (k for k in ("model", "state_dict") if isinstance(state, dict) and isinstance(state.get(k), dict)), None
    )
    if inner is not None:
        arguments, state = state.get("args") or state.get("cfg") or {}, state[inner]
        arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise UsageError(f"{path} holds {type(state).__name__}, expected a state_dict: name to tensor")
    return arguments if isinstance(arguments, dict) else {}, state


def load_checkpoints(paths: Sequence[Path], table: WeightMap) -> dict[str, Tensor]:
    """The entries of one file, or of all that make a network together, each name with its file's part before it."""
    if len(paths) == 1:
        return load_checkpoint(paths[0])
    found: dict[str, Tensor] = {}
    for path in paths:
        state = load_checkpoint(path)
        before = table.part(state)
        named = {before + n: t for n, t in state.items()}
        if twice := set(named) & set(found):
            raise UsageError(f"{path} and a file before it both hold {min(twice)}: give one file of each kind")
        found |= named
    return found


def _plain_pickle(path: Path) -> Any:
    """What some authors dump without torch.save, or with it as a whole object."""
    import zipfile

    import torch

    from mer_export.untrusted.tensor_pickle import load_tensor_pickle
    from mer_export.untrusted.torch_archive import load_module

    found = load_module(path) if zipfile.is_zipfile(path) else load_tensor_pickle(path)
    if not isinstance(found, dict):
        return found
    return {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in found.items()}


def import_weights(model: nn.Module, state: dict[str, Tensor], table: WeightMap, config: Any) -> dict[str, int]:
    """Loads an authors' state_dict into `model`, in place.

    Returns:
        How many entries were loaded, left out because the forward never reads them, and kept at their own value.

    Raises:
        UsageError: with every missing, unexpected and misshapen entry.
    """
    renames = table.renames(config)
    constants = table.constants(config)
    unused = table.unused(config) | table.ignored(config) | {n: tuple(t.shape) for n, t in constants.items()}
    state = table.prepare(config, state)
    own = model.state_dict()
    problems = [f"missing {n}" for n in renames if n not in state]
    problems += [f"unexpected {n}" for n in state if n not in renames and n not in unused]
    expected = {n: tuple(own[ours].shape) for n, ours in renames.items()}
    expected |= {n: shape for n, shape in unused.items() if n in state}
    problems += [
        f"{n} is {tuple(state[n].shape)}, expected {shape}"
        for n, shape in expected.items()
        if n in state and tuple(state[n].shape) != shape
    ]
    problems += _disagreements(renames, state)
    problems += [f"{n} is not the fixed table of the original" for n, t in constants.items() if not _close(state, n, t)]
    if problems:
        raise UsageError(f"checkpoint does not fit the config ({len(problems)} problems): " + "; ".join(problems))
    loaded = {ours: state[n] for n, ours in renames.items()}
    model.load_state_dict(own | loaded)
    return {"loaded": len(loaded), "unused": len(set(state) & set(unused)), "own": len(own) - len(loaded)}


def export_weights(model: nn.Module, table: WeightMap, config: Any) -> dict[str, Tensor]:
    """The authors' state_dict of `model`, loadable by their code; entries they never read are zeros."""
    import torch

    own = model.state_dict()
    state = {n: own[ours] for n, ours in table.renames(config).items()}
    return state | {n: torch.zeros(shape) for n, shape in table.unused(config).items()} | table.constants(config)


def _disagreements(renames: dict[str, str], state: dict[str, Tensor]) -> list[str]:
    """Names of one shared tensor that hold different values."""
    first: dict[str, str] = {}
    for name, ours in renames.items():
        first.setdefault(ours, name)
    return [
        f"{name} differs from {first[ours]}, which the config shares with it"
        for name, ours in renames.items()
        if name in state and first[ours] in state and not _same(state[name], state[first[ours]])
    ]


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and bool((a == b).all()))


def _close(state: dict[str, Tensor], name: str, constant: Tensor) -> bool:
    """True where a checkpoint lacks the entry, has another shape (reported elsewhere) or the same values."""
    found = state.get(name)
    return found is None or found.shape != constant.shape or bool(((found - constant).abs() <= 1e-3).all())
