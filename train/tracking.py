"""Losses and metrics of every epoch to the trackers that people have, through those of `accelerate`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_export.errors import NotAvailableError, UsageError
from mer_export.install import Extra, not_installed
from train.config import TrainConfig

Log = Callable[[Mapping[str, Any]], None]
"""Takes the record of an epoch."""


@dataclass(frozen=True)
class Tracker:
    """How `accelerate` calls a tracker: the package in words, its extra, and the arguments for a run."""

    package: str
    extra: Extra
    arguments: Callable[[TrainConfig, Path], dict[str, Any]]


TRACKERS: dict[str, Tracker] = {
    "tensorboard": Tracker(
        "tensorboard",
        "tensorboard",
        lambda config, out: {"run_name": f"{out.name}-tensorboard", "logging_dir": out.parent},
    ),
    "mlflow": Tracker(
        "mlflow",
        "mlflow",
        lambda config, out: {"experiment_name": config.system, "run_name": out.name},
    ),
    "wandb": Tracker(
        "wandb",
        "wandb",
        lambda config, out: {
            "run_name": config.system,
            "name": out.name,
            "dir": out.parent,
            # Nothing leaves the machine that nobody asked to send.
            "mode": os.environ.get("WANDB_MODE", "offline"),
        },
    ),
}
"""By the names of `accelerate`."""


def parse_trackers(text: str | None) -> tuple[str, ...]:
    """The names in `tensorboard,mlflow`; raises UsageError for one that is not known."""
    names = tuple(dict.fromkeys(n.strip() for n in (text or "").split(",") if n.strip()))
    unknown = [n for n in names if n not in TRACKERS]
    if unknown:
        raise UsageError(f"--track {unknown[0]!r} is no tracker, there are {list(TRACKERS)}")
    return names


def require_trackers(names: Sequence[str]) -> None:
    """Raises NotAvailableError for the first tracker whose package is missing, with the extra that brings it."""
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    there = {str(t) for t in get_available_trackers()}
    for name in names:
        if name not in there:
            raise NotAvailableError(not_installed(TRACKERS[name].package, TRACKERS[name].extra))


@contextlib.contextmanager
def tracking(names: Sequence[str], config: TrainConfig, out: Path) -> Iterator[Log]:
    """A run in every tracker for the block, which knows the configuration; gives what logs an epoch to all of them.

    Raises:
        NotAvailableError: a package is missing.
    """
    if not names:
        yield lambda record: None
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    require_trackers(names)
    with contextlib.ExitStack() as stack:
        running = []
        for name in names:
            tracker = LOGGER_TYPE_TO_CLASS[name](**TRACKERS[name].arguments(config, out.absolute()))
            tracker.start()
            stack.callback(tracker.finish)
            tracker.store_init_configuration(_flat(config.model_dump(mode="json")))
            running.append(tracker)

        def log(record: Mapping[str, Any]) -> None:
            values = _scalars(record)
            for tracker in running:
                tracker.log(values, step=record["epoch"])

        yield log


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    groups: dict[str, dict[str, float]] = {"train": record["train"], **record["splits"]}
    return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings as `section.name`; trackers know numbers and words alone."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, str | int | float) else str(value)
    return found
