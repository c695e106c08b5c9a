"""Weights in and out: the bundle's own, and foreign checkpoints through one strict table of names per system."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.checkpoints import Judge, State, fitting_state, read_checkpoint, usual_state
from mer_export.errors import BundleError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

MISFIT = "in loading state_dict"
"""How PyTorch and safetensors begin to say which entries of a network are not there, too many or of another shape."""


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
    """The PyTorch model of a bundle: float32, CPU, evaluation mode.

    Raises:
        BundleError: weights that are not those of the network; names the first.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    system = registry.get(bundle.manifest.system)
    with _undrawn():
        model = system.build(system.parse(bundle.manifest.config))
    try:
        load_model(model, bundle.path(WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        first, *problems = str(error).splitlines() or [""]
        if isinstance(error, RuntimeError) and MISFIT not in first:
            raise
        reason = " ".join((problems or [first])[0].split())
        raise BundleError(
            f"{bundle.root}: {WEIGHTS} does not hold the weights of {system.name} as this mer has it ({reason:.200}): "
            "train or import it again"
        ) from None
    return model.eval()


def _undrawn() -> Any:
    """Networks are built without the random weights that they would start from: drawing takes longer than loading."""
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    drawing = {
        *(f for name, f in vars(init).items() if name.endswith(("uniform_", "normal_")) and not name.startswith("_")),
        *(torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_),
    }

    class Undrawn(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, arguments: Any = (), named: Mapping[str, Any] | None = None
        ) -> Any:
            if function not in drawing:
                return function(*arguments, **(named or {}))
            tensor = arguments[0] if arguments else (named or {})["tensor"]
            # Not left as memory happens to be: what draws from a part of a distribution draws until all lies in it.
            tensor.detach().zero_()
            return tensor

    return Undrawn()


def save_weights(model: nn.Module, path: Path) -> None:
    """The weights of a network as safetensors, tied ones once.

    On a GPU the weights of a recurrent layer are parts of one piece of memory; in the file each stands for itself.
    """
    from safetensors.torch import save_model

    held: dict[Any, Tensor] = {}

    def on_host(name: str, tensor: Tensor) -> Tensor:
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        return held.setdefault(place, tensor.cpu())

    state = {name: on_host(name, tensor) for name, tensor in model.state_dict().items()}
    # It takes whatever gives a state_dict.
    save_model(cast("nn.Module", SimpleNamespace(state_dict=lambda: state)), str(path))


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


def load_checkpoint(path: Path, judge: Judge | None = None) -> dict[str, Tensor]:
    """The state_dict of a file or folder of weights, wherever in it it stands and however its names are wrapped.

    Args:
        path: torch file of any age, safetensors file, plain pickle of tensors, index of parts, or a folder of them.
        judge: what is wrong with a table of tensors; None takes the usual places.

    Raises:
        UsageError: no such file, none that fits, or several; says what the file holds.
        InputError: a file that cannot be read.
    """
    checkpoint = read_checkpoint(path)
    return usual_state(checkpoint) if judge is None else fitting_state([checkpoint], judge)


def load_checkpoints(
    paths: Sequence[Path], table: WeightMap, judge: Judge, key: str | None = None
) -> dict[str, Tensor]:
    """The entries of one file, or of all that make a network together, each name with its file's part before it.

    Raises:
        UsageError: as `load_checkpoint`, or two files of the same part.
    """

    def join(states: list[State]) -> State:
        if len(states) == 1:
            return states[0]
        found: State = {}
        for path, state in zip(paths, states, strict=True):
            before = table.part(state)
            named = {before + n: t for n, t in state.items()}
            if twice := set(named) & set(found):
                raise UsageError(f"{path} and a file before it both hold {min(twice)}: give one file of each kind")
            found |= named
        return found

    return fitting_state([read_checkpoint(p) for p in paths], judge, key, join)


def misfits(own: dict[str, Tensor], state: dict[str, Tensor], table: WeightMap, config: Any) -> list[str]:
    """Every missing, unexpected and misshapen entry of an authors' state_dict for a network with the entries `own`."""
    return _misfits(own, table.prepare(config, state), table, config)


def _misfits(own: dict[str, Tensor], state: dict[str, Tensor], table: WeightMap, config: Any) -> list[str]:
    renames = table.renames(config)
    constants = table.constants(config)
    unused = _unused(table, config)
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
    return problems


def _unused(table: WeightMap, config: Any) -> dict[str, tuple[int, ...]]:
    constants = {n: tuple(t.shape) for n, t in table.constants(config).items()}
    return table.unused(config) | table.ignored(config) | constants


def import_weights(model: nn.Module, state: dict[str, Tensor], table: WeightMap, config: Any) -> dict[str, int]:
    """Loads an authors' state_dict into `model`, in place.

    Returns:
        How many entries were loaded, left out because the forward never reads them, and kept at their own value.

    Raises:
        UsageError: with every missing, unexpected and misshapen entry.
    """
    state, own = table.prepare(config, state), model.state_dict()
    if problems := _misfits(own, state, table, config):
        raise UsageError(f"checkpoint does not fit the config ({len(problems)} problems): " + "; ".join(problems))
    loaded = {ours: state[n] for n, ours in table.renames(config).items()}
    model.load_state_dict(own | loaded)
    unused = set(state) & set(_unused(table, config))
    return {"loaded": len(loaded), "unused": len(unused), "own": len(own) - len(loaded)}


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
