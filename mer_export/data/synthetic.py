"""Synthetic data sets in the authors' own file formats: learnable, with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mer_export.data.formats.format import Synthesiser, synthesisers
from mer_export.errors import UsageError
from mer_export.registry import first_problem


def first_dataset(system: str) -> str:
    """The data set that is imitated where none is named; raises UsageError for an unknown system."""
    return next(iter(_synthesiser(system).datasets))


def synthesise(
    system: str, dataset: str, out: Path | str, dialogues: int | None = None, seed: int = 0, **settings: Any
) -> list[Path]:
    """Writes a synthetic data set for `system` in its authors' layout, the same for the same arguments.

    Args:
        system: a system whose authors' files can be written.
        dataset: which of its data sets to imitate.
        out: directory, made if absent.
        dialogues: how many items (dialogues, or utterances for systems that take those); None takes the real number.
        seed: of everything random.
        settings: fields of the synthesiser's settings.

    Returns:
        The files: features, difficulties, ground truth.

    Raises:
        UsageError: an unknown system, data set or setting.
    """
    row = _synthesiser(system)
    if dataset not in row.datasets:
        raise UsageError(f"no synthetic {dataset!r} for {system}, there are {list(row.datasets)}")
    if dialogues is not None and dialogues < row.fewest:
        raise UsageError(f"{dialogues} items cannot be split: ask for at least {row.fewest}")
    try:
        config = row.settings.model_validate({**row.datasets[dataset].defaults, **settings})
    except ValidationError as error:
        raise UsageError(f"synthetic data: {first_problem(error)}") from None
    return row.write(dataset, Path(out), dialogues or row.datasets[dataset].items, seed, config)


def _synthesiser(system: str) -> Synthesiser:
    if system not in synthesisers():
        raise UsageError(f"no synthetic data for {system!r}, there is for {list(synthesisers())}")
    return synthesisers()[system]
