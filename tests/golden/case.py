"""A golden case: what the authors' code computed, and the comparison rule stored with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np


class CannotMap(Exception):
    """No adapter for this case, or an option in it that nothing here understands."""


@dataclass(frozen=True)
class Case:
    """One directory with case.json."""

    folder: Path
    content: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    @classmethod
    def load(cls, folder: Path) -> Case:
        content = json.loads((folder / "case.json").read_text())
        return cls(folder, content, _arrays(folder / "inputs.npz"), _arrays(folder / "outputs.npz"))

    @property
    def config(self) -> dict[str, Any]:
        return self.content["config"]

    def compare(self, found: dict[str, Any], tolerances: dict[str, float] | None = None) -> list[str]:
        """One line per output that is missing or differs.

        Floats: |found - reference| <= atol + rtol * |reference|; integers and booleans exactly. `tolerances` gives
        the atol of outputs by prefix, where a case states one in words.
        """
        problems = [] if self.outputs else ["no outputs: there is nothing to compare"]
        for name, reference in self.outputs.items():
            if name not in found:
                problems.append(f"{name}: no adapter computes it")
                continue
            value = np.asarray(found[name])
            if value.shape != reference.shape:
                problems.append(f"{name}: shape {value.shape}, reference {reference.shape}")
                continue
            if reference.dtype.kind in "iub":
                wrong = int((value != reference).sum())
                if wrong:
                    problems.append(f"{name}: {wrong} of {reference.size} integers differ")
                continue
            patterns = self.content.get("atol_by_output", {})
            by_pattern = [a for pattern, a in patterns.items() if fnmatchcase(name, pattern)]
            by_prefix = [a for prefix, a in (tolerances or {}).items() if name.startswith(prefix)]
            atol = [*by_pattern, *by_prefix, self.content["atol"]][0]
            allowed = atol + self.content.get("rtol", 0.0) * np.abs(reference)
            value = value.astype(np.float64)
            with np.errstate(invalid="ignore"):
                error = np.abs(value - reference)
            # Data cases hold infinities and NaN that have to come through as they are.
            same = (value == reference) | (np.isnan(value) & np.isnan(reference))
            if not (same | (error <= allowed)).all():
                problems.append(f"{name}: error {np.nanmax(error):.3g}, atol {atol:g}")
        return problems


def translate(options: dict[str, Any], names: dict[str, str], others: set[str]) -> dict[str, Any]:
    """Options with a name of ours; refuses those that nothing here understands."""
    if unknown := set(options) - set(names) - others:
        raise CannotMap(f"options {sorted(unknown)} of this case are not known")
    if options.get("hidden_act", "gelu") != "gelu":
        raise CannotMap(f"hidden_act {options['hidden_act']!r} is not supported, only 'gelu'")
    return {ours: options[theirs] for theirs, ours in names.items() if theirs in options}


def find_cases(root: Path) -> list[Path]:
    """Every <system>/<case> below `root` (or a single system's directory) that has a case.json."""
    return sorted(p.parent for p in root.glob("**/case.json"))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
