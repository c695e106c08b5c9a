"""Where the weights are in a file that people's training scripts wrote, as people name and wrap them.

A file holds one or several tables of tensors by name, alone or inside dicts beside optimisers, schedulers and
arguments, or modules that were saved whole. The table of names that a network expects decides which one is meant.
Nothing in a file is executed: what is not data is an empty record.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mer_export.errors import InputError, UsageError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.builders import Name, Record
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.json_files import read_json
from mer_export.untrusted.pickles import load_records

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]
Judge = Callable[[State], list[str]]
"""What keeps a table of tensors from being the wanted one; nothing where it is."""

FILES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
"""Behind the name of a weight file: the table of its parts."""
USUAL = ("model", "state_dict", "model_state_dict", "net", "")
"""Where weights are looked for in a file when no table of names decides, in this order."""
ARGUMENTS = ("args", "cfg", "hyper_parameters")
WRAPPER = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|module|_forward_module|_original_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What torch.compile, DataParallel, Lightning, FSDP and checkpointing put into names, at any place."""
AVERAGED = "n_averaged"
"""The counter that `torch.optim.swa_utils.AveragedModel` keeps beside its copy of a model."""
OPTIMIZER = "param_groups"
MAX_DEPTH, MAX_MODULES, MAX_ITEMS = 6, 64, 64
MAX_FORMS = 6
MAX_STATES = 64
"""Each is held against the others and against the network: of thousands, which a small file can hold, for hours."""


@dataclass(frozen=True)
class StateDict:
    """Tensors by name at one place of a file, and what stands under other names there."""

    key: str
    tensors: State
    others: dict[str, str] = field(default_factory=dict)

    def forms(self) -> Iterator[State]:
        """The names as they are, without wrappers', and without the prefixes that all of them share, one by one."""
        yield self.tensors
        state = _unwrapped(self.tensors)
        if state.keys() != self.tensors.keys():
            yield state
        for _ in range(MAX_FORMS):
            first = {n.partition(".")[0] for n in state}
            if len(first) != 1 or not all("." in n for n in state):
                return
            state = {n.partition(".")[2]: t for n, t in state.items()}
            yield state


@dataclass(frozen=True)
class Checkpoint:
    """A file or folder of weights: every table of tensors in it, and the arguments of its training."""

    path: Path
    states: tuple[StateDict, ...]
    arguments: dict[str, Any]
    content: str
    """What the file holds, in words."""

    def under(self, key: str | None) -> tuple[StateDict, ...]:
        """The tables at `key` (all for None), without further ones of the same tensors; raises UsageError for none."""
        found = [s for s in self.states if key is None or s.key == key]
        if not self.states:
            raise UsageError(f"{self.path} holds no state_dict (tensors by name); it holds {self.content}")
        if not found:
            keys = [s.key or "the file itself" for s in self.states]
            raise UsageError(f"{self.path} has no weights under {key!r}, there are {keys}")
        return tuple(s for i, s in enumerate(found) if not any(_equal(s.tensors, t.tensors) for t in found[:i]))


def weight_files(path: Path) -> list[Path]:
    """The files of weights at a path: it, the parts that its index names, or those of a folder of `transformers`.

    Raises:
        UsageError: nothing there.
        InputError: a folder without weights, an index that cannot be read, or that names files elsewhere.
    """
    if path.is_dir():
        found = next((path / n for name in FILES for n in (name, name + INDEX) if (path / n).is_file()), None)
        if found is None:
            inside = sorted(p.name for p in path.iterdir())[:20]
            raise InputError(f"{path} holds none of {list(FILES)}, nor an index of their parts; it holds {inside}")
        return weight_files(found)
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint file")
    return _parts(path) if path.name.endswith(INDEX) else [path]


def _parts(index: Path) -> list[Path]:
    content = read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise InputError(f"{index} is not an index of weight files: it has no weight_map")
    names = sorted(set(table.values()))
    outside = [n for n in names if Path(n).name != n or n.endswith(INDEX) or "\\" in n]
    missing = [n for n in names if n not in outside and not (index.parent / n).is_file()]
    if outside or missing:
        raise InputError(f"{index} names {outside or missing}, which are not files beside it: get all parts")
    return [index.parent / n for n in names]


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a torch file of any age, a plain pickle or a safetensors file, whatever its ending, or all parts of one.

    Raises:
        UsageError: no such file.
        InputError: damaged, a pointer or web page in place of the file, or of another kind.
    """
    files = weight_files(path)
    if len(files) == 1:
        return _read(files[0])
    tensors: State = {}
    for file in files:
        for state in _read(file).states:
            if twice := sorted(tensors.keys() & state.tensors.keys()):
                raise InputError(
                    f"{path}: {twice[0]} is in {file.name} and in a part before it: get the parts of one save"
                )
            tensors |= state.tensors
    return Checkpoint(path, (StateDict("", tensors),), {}, f"{len(tensors)} tensors in {len(files)} files")


def _read(path: Path) -> Checkpoint:
    refuse_impostor(path)
    with path.open("rb") as stream:
        head = stream.read(9)
    if head[8:] == b"{":
        tensors = _safetensors(path)
        return Checkpoint(path, (StateDict("", tensors),), {}, _outline(tensors))
    content = load_records(path)
    budget = Budget.of(path)
    states = tuple(itertools.islice(_states(content, "", budget, set()), MAX_STATES + 1))
    if len(states) > MAX_STATES:
        raise InputError(f"{path} holds more than {MAX_STATES} tables of tensors: save the one that is meant by itself")
    arguments = next((v for k in ARGUMENTS if isinstance(content, dict) and isinstance(v := content.get(k), dict)), {})
    return Checkpoint(path, states, {k: v for k, v in arguments.items() if isinstance(k, str)}, _outline(content))


def _safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is not a readable safetensors file ({reason}): it is truncated or damaged") from None


def _states(value: Any, key: str, budget: Budget, seen: set[int], depth: int = 0) -> Iterator[StateDict]:
    """Every table of tensors in nested containers, from outside in; optimisers hold tensors and are passed over."""
    budget.take(objects=1)
    if depth > MAX_DEPTH or id(value) in seen or not isinstance(value, dict | list | tuple):
        return
    seen.add(id(value))
    if isinstance(value, Record) and isinstance(value.get("_modules"), dict):
        yield _state_dict(key, dict(_entries(value, "", budget)), budget)
        return
    if not isinstance(value, dict):
        value = dict(zip(map(str, range(MAX_ITEMS)), value, strict=False))
    if OPTIMIZER in value:
        return
    named = {k: v for k, v in value.items() if isinstance(k, str)}
    if any(_is_tensor(v) for v in named.values()):
        yield _state_dict(key, named, budget)
    for name, inner in named.items():
        yield from _states(inner, f"{key}.{name}" if key else name, budget, seen, depth + 1)


def _state_dict(key: str, values: dict[str, Any], budget: Budget) -> StateDict:
    import torch

    arrays = {n: v for n, v in values.items() if _is_tensor(v)}
    budget.take(sum(a.nbytes for a in arrays.values()), len(arrays))
    others = {n: _kind(v) for n, v in values.items() if n not in arrays}
    return StateDict(key, {n: torch.from_numpy(a) for n, a in arrays.items()}, others)


def _entries(module: Any, prefix: str, budget: Budget, depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters and persistent buffers of a module that was saved whole."""
    budget.take(objects=64)
    if not isinstance(module, dict) or depth > MAX_MODULES:
        return
    hidden = module.get("_non_persistent_buffers_set")
    hidden = hidden if isinstance(hidden, set | list) else ()
    for kind in ("_parameters", "_buffers"):
        tensors = module.get(kind)
        for name, value in tensors.items() if isinstance(tensors, dict) else ():
            if _is_tensor(value) and name not in hidden:
                yield f"{prefix}{name}", value
    children = module.get("_modules")
    for name, child in children.items() if isinstance(children, dict) else ():
        yield from _entries(child, f"{prefix}{name}.", budget, depth + 1)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8


def _kind(value: Any) -> str:
    if isinstance(value, Record | Name):
        return value.kind if isinstance(value, Record) else value.name
    return "tensor" if _is_tensor(value) else type(value).__name__


def _outline(value: Any) -> str:
    """What a file holds, one level deep."""
    if not isinstance(value, dict):
        return f"a {_kind(value)}"
    parts = []
    for name, inner in itertools.islice(value.items(), MAX_ITEMS // 4):
        inside = f" ({', '.join(map(str, itertools.islice(inner, 4)))}, ...)" if isinstance(inner, dict) else ""
        parts.append(f"{name!s:.60}: {_kind(inner)}{inside:.200}")
    more = f" and {len(value) - len(parts)} more" if len(value) > len(parts) else ""
    return f"{'; '.join(parts)}{more}" if parts else "nothing"


def _unwrapped(state: State) -> State:
    """Without what wrappers put into the names; as it is where two names would become one for different tensors."""
    found: State = {}
    for name, tensor in state.items():
        if name == AVERAGED:
            continue
        plain = WRAPPER.sub("", name)
        if plain in found and not _same(found[plain], tensor):
            return state
        found[plain] = tensor
    return found if found.keys() != state.keys() - {AVERAGED} else state


def _same(a: Tensor, b: Tensor) -> bool:
    if a.data_ptr() == b.data_ptr() and a.shape == b.shape:
        return True
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


def _equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(_same(t, b[n]) for n, t in a.items())


def usual_state(checkpoint: Checkpoint) -> State:
    """The table of tensors that is meant where no network says what it expects, without wrappers' names.

    Raises:
        UsageError: none, or several of equal right.
    """
    states = checkpoint.under(None)
    found = [s for name in USUAL for s in states if s.key == name] or list(states)
    if len(found) > 1 and found[0].key not in USUAL:
        raise _ambiguous(checkpoint.path, [s.key for s in found])
    return _unwrapped(found[0].tensors)


def fitting_state(
    checkpoints: Sequence[Checkpoint],
    judge: Judge,
    key: str | None = None,
    join: Callable[[list[State]], State] = operator.itemgetter(0),
) -> State:
    """The table of tensors that a network expects: of one file, or of several that make it together.

    Args:
        checkpoints: the files.
        judge: says what is wrong with a table of names and tensors.
        key: the place in the file, where several fit.
        join: makes one table of the files'; raises UsageError where two hold the same.

    Raises:
        UsageError: none fits (with all that is wrong with the one that fits best), or several do.
    """
    choices = [c.under(key) for c in checkpoints]
    fits: list[tuple[str, State]] = []
    best: tuple[int, str] | None = None
    clash = UsageError()
    for chosen in itertools.product(*choices):
        where = ", ".join(s.key or "the file itself" for s in chosen)
        for forms in itertools.product(*(s.forms() for s in chosen)):
            try:
                state = join(list(forms))
            except UsageError as error:
                clash = error
                continue
            problems = judge(state)
            if not problems:
                fits.append((where, state))
                break
            if best is None or len(problems) < best[0]:
                best = len(problems), "; ".join(problems)
    if len(fits) > 1:
        raise _ambiguous(checkpoints[0].path, [where for where, _ in fits])
    if not fits:
        raise clash if best is None else UsageError(_misfit(best, checkpoints))
    return fits[0][1]


def _ambiguous(path: Path, keys: list[str]) -> UsageError:
    return UsageError(f"{path} holds several sets of weights that fit: {', '.join(keys)}; choose one with --key")


def _misfit(best: tuple[int, str], checkpoints: Sequence[Checkpoint]) -> str:
    held = "; ".join(f"{c.path.name} holds {c.content}" for c in checkpoints)
    others = {
        n: k for c in checkpoints for s in c.states for n, k in s.others.items() if f"missing {n};" in f"{best[1]};"
    }
    unread = "".join(f"; {n} is a {kind}, not a plain tensor" for n, kind in others.items())
    return f"checkpoint does not fit the config ({best[0]} problems): {best[1]}{unread}; {held}"
