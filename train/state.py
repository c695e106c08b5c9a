"""Resumable state of a run inside the bundle: tensors as safetensors, the rest as JSON, nothing pickled.

    train/state.safetensors   weights and buffers after the last committed epoch, their moving average, Adam moments
    train/state.json          next epoch, best epoch so far, whether training has ended
    train/metrics.jsonl       one line per epoch
    train/difficulty.json     difficulties the curriculum uses

Random streams need no place here: every pass restarts them from the configured seed.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from mer_export.bundle import Bundle, Commit
from mer_export.errors import BundleError
from train.loop import Phase

TENSORS = "train/state.safetensors"
STATE = "train/state.json"
METRICS = "train/metrics.jsonl"
DIFFICULTY = "train/difficulty.json"
MODEL, AVERAGE, ADAM, PROTOCOL = "model.", "average.", "adam.", "protocol."


class RunState(BaseModel):
    """Where a run stands. `epoch` counts the epochs that are done."""

    model_config = ConfigDict(extra="forbid")

    epoch: int = 0
    finished: bool = False
    best_epoch: int | None = None
    best_value: float | None = None
    records: list[dict[str, Any]] = Field(default_factory=list, exclude=True)
    """Content of metrics.jsonl."""


def read_state(bundle: Bundle) -> RunState | None:
    """The state of the run that made this bundle; None where no training did."""
    if STATE not in bundle.manifest.files:
        return None
    try:
        state = RunState.model_validate_json(bundle.path(STATE).read_bytes())
        state.records = [json.loads(line) for line in bundle.path(METRICS).read_text().splitlines()]
    except (ValidationError, ValueError) as error:
        raise BundleError(f"{bundle.root}: {STATE} cannot be read ({' '.join(str(error).split())[:200]})") from None
    return state


def phase_state(change: Commit, state: RunState, phase: Phase) -> None:
    """Puts the state of a run into a commit; a finished run drops the tensors that only resuming needs."""
    from safetensors.torch import save_file

    change.write(STATE, state.model_dump_json(indent=1))
    change.write(METRICS, "".join(json.dumps(r) + "\n" for r in state.records))
    if not state.finished:
        save_file(_tensors(phase), change.file(TENSORS))
    elif TENSORS in change.manifest.files:
        change.remove(TENSORS)


def load_tensors(bundle: Bundle, phase: Phase) -> None:
    """Puts model, optimiser and moving average back to where the last committed epoch left them."""
    from safetensors.torch import load_file

    stored = load_file(bundle.path(TENSORS))
    phase.model.load_state_dict(_under(MODEL, stored))
    if phase.average is not None:
        phase.average.load_state_dict(_under(AVERAGE, stored))
    phase.protocol.load_tensors(_under(PROTOCOL, stored))
    names = _optimised(phase)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(ADAM, stored).items():
        key, _, parameter = name.partition(".")
        moments.setdefault(names.index(parameter), {})[key] = tensor
    content = phase.optimizer.state_dict()
    content["state"] = moments
    phase.optimizer.load_state_dict(content)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _tensors(phase: Phase) -> dict[str, Tensor]:
    tensors = {MODEL + n: t for n, t in phase.model.state_dict().items()}
    if phase.average is not None:
        tensors |= {AVERAGE + n: t for n, t in phase.average.state_dict().items()}
    tensors |= {PROTOCOL + n: t for n, t in phase.protocol.tensors().items()}
    names = _optimised(phase)
    for index, moments in phase.optimizer.state_dict()["state"].items():
        kept = {key: value for key, value in moments.items() if isinstance(value, Tensor)}
        tensors |= {f"{ADAM}{key}.{names[index]}": value for key, value in kept.items()}
    return {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}


def _optimised(phase: Phase) -> list[str]:
    """Names of the optimiser's parameters in the order of its groups."""
    names = {id(p): n for n, p in phase.model.named_parameters()}
    return [names[id(p)] for group in phase.optimizer.param_groups for p in group["params"]]
