"""An experiment as a file: models, each a chain of recipes, a grid, and the table they fill. Needs no torch.

presets/experiments/<name>.yaml

A model is trained once for every cell of the grid. An axis of the grid is either a setting with its values
(`protocol.missing: [0.0, 0.1]`) or a name with the settings that each of its values stands for. A setting
`measure:section.field` holds when the finished model is measured and not when it is trained. In texts `{missing}`
stands for the value of an axis, `{first}` for the bundle of an earlier step of the same model, and `{M3NET}` for that
of an earlier model. A step with `baseline: linear` or `recurrent` fits such a model to the inputs, splits and labels of
its recipe in place of training it; see `baselines`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from mer_export.data.bundle_data import refuse_unread
from mer_export.errors import UsageError
from mer_export.experiment import TableSpec
from mer_export.overrides import apply_overrides
from mer_export.registry import first_problem
from mer_export.untrusted.places import Allowed
from mer_export.untrusted.yaml_files import parse_yaml, read_yaml
from train.config import (
    EXPERIMENTS,
    FOLDER,
    PRESETS,
    TRAINING_READS,
    Strict,
    TrainConfig,
    read_settings,
    settled_config,
)
from train.experiments.baselines.settings import Baseline

NAMES: tuple[str, ...] = tuple(
    sorted(p.relative_to(EXPERIMENTS).with_suffix("").as_posix() for p in EXPERIMENTS.rglob("*.yaml"))
)
"""The experiments that there are."""
MEASURE = "measure:"
"""Begins a setting that holds for measuring alone."""
MEASURED_BY = ("system", "model", "data", "protocol", "evaluate_splits")
"""What of a configuration measuring goes by: a seed that a step is not trained by changes nothing of its numbers."""
BRACES = r"\{([^{}\":]+)\}"
NAME = r"^[A-Za-z0-9][A-Za-z0-9 .,_+-]*$"


class Step(Strict):
    """What is trained once: a bundle by a recipe, or a baseline of one, and what this experiment changes of it."""

    name: str = Field("model", pattern=NAME)
    preset: str
    """A recipe; it says which system is trained."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings over the recipe's, `section.field` to value."""
    axes: tuple[str, ...] | None = None
    """Of the grid those that change this step: it is trained once for all cells that agree on them. None means all."""
    baseline: Baseline | None = None
    """What is fitted in place of the recipe's network; a name stands for its settings as they are."""

    @field_validator("baseline", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class Experiment(Strict):
    """What is trained, over what, and which table it fills."""

    title: str
    source: str = ""
    """Section or script that it repeats."""
    models: dict[str, tuple[Step, ...]] = Field(min_length=1)
    """Rows of the table by name: the steps of each in order. The last one is measured."""
    grid: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(default_factory=dict)
    table: TableSpec

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        for name, steps in self.models.items():
            names = [s.name for s in steps]
            if not re.match(NAME, name) or not steps or len(set(names)) < len(names):
                raise ValueError(f"model {name!r} needs a plain name, and steps of different names, it has {names}")
            for step in steps:
                unknown = [a for a in step.axes or () if a not in self.grid]
                if unknown:
                    raise ValueError(f"step {step.name!r} names the axis {unknown[0]!r}, there are {list(self.grid)}")
            if len(steps) > 1 and any(s.baseline for s in steps):
                raise ValueError(f"model {name!r} has a baseline among several steps: a baseline is a model of its own")
        if empty := [a for a, values in self.grid.items() if not values]:
            raise ValueError(f"axis {empty[0]!r} has no values")
        area = self.table.area
        for axis in (*self.table.over, *filter(None, [area])):
            if axis not in self.grid:
                raise ValueError(f"the table names the axis {axis!r}, there are {list(self.grid)}")
        if area is not None and (area in self.table.over or not all(map(_is_number, self.labels(area)))):
            raise ValueError(f"the table has the area over {area!r}: name an axis of numbers that is not averaged over")
        return self

    def labels(self, axis: str) -> list[str]:
        """The values of an axis as they are written."""
        return [_written(value) for value in self.grid[axis]]

    def set_by(self, axis: str, label: str) -> dict[str, Any]:
        """What a value of an axis sets."""
        values = self.grid[axis]
        if isinstance(values, dict):
            return values[label]
        return {axis: next(v for v in values if _written(v) == label)}


@dataclass(frozen=True)
class Job:
    """One bundle or baseline to train: a step of a model, for all cells that agree on its axes."""

    title: str
    folder: PurePosixPath
    """Of the bundle, below the directory of the experiment."""
    needs: tuple[PurePosixPath, ...]
    """Bundles that have to be there before."""
    config: TrainConfig
    baseline: Baseline | None = None
    """What is fitted in place of a bundle."""


@dataclass(frozen=True)
class Cell:
    """One measurement: the last step of a model at one place of the grid."""

    model: str
    place: dict[str, str]
    """Axis to value, in the order of the grid."""
    folder: PurePosixPath
    """The bundle, or baseline, that is measured."""
    config: TrainConfig | None
    """What it is measured with, where that is not what it was trained with."""


@dataclass(frozen=True)
class Plan:
    """What an experiment trains and measures, and the table that it fills."""

    title: str
    source: str
    table: TableSpec
    rounds: list[list[Job]]
    """The jobs of a round need bundles of earlier rounds at most."""
    cells: list[Cell]
    """In the order of the table."""


def load_experiment(name: str, grid: Iterable[str] = ()) -> Experiment:
    """The experiment of that name, or of that file, with `axis=value,value` in place of values of the grid.

    Raises:
        UsageError: no such experiment, or something in it does not fit.
    """
    if name in NAMES:
        path = EXPERIMENTS / f"{name}.yaml"
    elif name.endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        raise UsageError(f"no experiment {name!r}, there are {list(NAMES)}, or pass a file NAME.yaml")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds {type(values).__name__}, expected an experiment")
    return parse_experiment(_with_grid(values, grid), str(path))


def parse_experiment(values: Mapping[str, Any], source: str) -> Experiment:
    """A checked experiment; raises UsageError naming the first wrong value."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: {first_problem(error)}") from None


def plan(
    experiment: Experiment, data: Path, out: Path, sets: Iterable[str] = (), outside: Iterable[Path] | None = None
) -> Plan:
    """What has to be trained and measured.

    Args:
        experiment: a checked one.
        data: data set, where paths of the recipes lead to.
        out: directory of the experiment.
        sets: `a.b=value` for every step, or `NAME:a.b=value` for the steps or the model of that name.
        outside: further folders that paths in recipes may lead to.

    Raises:
        UsageError: a recipe or a setting that does not exist or does not fit, in any of the jobs; one of `sets` that
            the data do not read; `out` is `data`.
        InputError: a recipe names a path that leads elsewhere.
    """
    if out.resolve() == data.resolve():
        raise UsageError(f"--out {out} is the data set: name another directory for the bundles")
    return _Planner(experiment, data, out, [*sets], outside).plan()


class _Planner:
    def __init__(
        self, experiment: Experiment, data: Path, out: Path, sets: Sequence[str], outside: Iterable[Path] | None
    ):
        self.experiment, self.data, self.out = experiment, data, out.absolute()
        self.given = [_addressed(experiment, text) for text in sets]
        typed = apply_overrides({}, [text for _, text in self.given])
        self.allowed = Allowed.by([*(outside or ()), self.out], typed)

    def plan(self) -> Plan:
        jobs: dict[PurePosixPath, Job] = {}
        for model, steps in self.experiment.models.items():
            for step in steps:
                for place in self._places(step.axes):
                    job = self._job(model, step, place)
                    there = jobs.setdefault(job.folder, job)
                    if there.title != job.title:
                        raise UsageError(f"{there.title} and {job.title} have one folder, {job.folder}: rename one")
        for job in jobs.values():
            if absent := [f for f in job.needs if f not in jobs]:
                raise UsageError(
                    f"{job.title} starts from {absent[0]}, and that is trained for each value of further axes: give "
                    "both the same axes"
                )
        cells = [self._cell(m, place, jobs) for m in self.experiment.models for place in self._places(None)]
        sets = [text for _, text in self.given if text.startswith("data.")]
        refuse_unread(self.data, next(iter(jobs.values())).config.data, sets, TRAINING_READS)
        e = self.experiment
        return Plan(e.title, e.source, e.table, _in_rounds(jobs), cells)

    def _places(self, axes: tuple[str, ...] | None) -> list[dict[str, str]]:
        names = [a for a in self.experiment.grid if axes is None or a in axes]
        found = itertools.product(*(self.experiment.labels(a) for a in names))
        return [dict(zip(names, labels, strict=True)) for labels in found]

    def _job(self, model: str, step: Step, place: dict[str, str]) -> Job:
        title = " ".join([model, *(f"{axis}={value}" for axis, value in place.items()), step.name])
        before = self._bundles_before(model, step, place)
        named = set(re.findall(BRACES, json.dumps(self._settings(step, place))))
        needs = tuple(f for name, f in before.items() if name in named)
        where = folder(self.experiment, model, step, place)
        return Job(title, where, needs, self._config(model, step, place), step.baseline)

    def _cell(self, model: str, place: dict[str, str], jobs: Mapping[PurePosixPath, Job]) -> Cell:
        step = self.experiment.models[model][-1]
        where = folder(self.experiment, model, step, place)
        if step.baseline:
            later = [name for name in self._settings(step, place) if name.startswith(MEASURE)]
            if later:
                raise UsageError(f"{model}: {later[0]} measures a bundle again, a baseline leaves none")
            return Cell(model, place, where, None)
        config = self._config(model, step, place, measured=True)
        trained = jobs[where].config
        alike = all(getattr(config, name) == getattr(trained, name) for name in MEASURED_BY)
        return Cell(model, place, where, None if alike else config)

    def _settings(self, step: Step, place: dict[str, str]) -> dict[str, Any]:
        """What the experiment sets of a step's recipe."""
        return step.set | {
            k: v for axis, label in place.items() for k, v in self.experiment.set_by(axis, label).items()
        }

    def _config(self, model: str, step: Step, place: dict[str, str], measured: bool = False) -> TrainConfig:
        bundles = {name: str(self.out / f) for name, f in self._bundles_before(model, step, place).items()}
        words = {axis.rpartition(".")[2]: label for axis, label in place.items()} | bundles
        preset = _filled(step.preset, words)
        if preset not in PRESETS:
            raise UsageError(f"no preset {preset!r}, there are {list(PRESETS)}")
        settings = self._settings(step, place)
        unknown = {*re.findall(BRACES, json.dumps([step.preset, settings]))} - {*words, "split"}
        if unknown:
            name = min(unknown)
            raise UsageError(
                f"{model}: {{{name}}} is no axis and no step or model before it, there are {sorted(words)}"
            )
        mine = [text for address, text in self.given if address in ("", step.name, model)]
        self._refuse_over_axes(mine, {a: v for a, v in place.items() if step.axes is None or a in step.axes})
        said = [(k, f"{k.removeprefix(MEASURE)}={json.dumps(_filled(v, words))}") for k, v in settings.items()]
        trained = [text for k, text in said if not k.startswith(MEASURE)]
        # What holds for measuring alone goes before what is set for the whole run.
        later = [text for k, text in said if k.startswith(MEASURE)] if measured else []
        overrides = [*trained, *mine, *later]
        values = apply_overrides(read_settings(FOLDER / f"{preset}.yaml"), overrides)
        return settled_config(values, f"{preset} for {model}", self.allowed, self.data)

    def _refuse_over_axes(self, mine: Sequence[str], place: Mapping[str, str]) -> None:
        """Raises UsageError for a setting that an axis sets too: every value of the axis would be trained alike."""
        for axis, label in place.items():
            for name, text in itertools.product(self.experiment.set_by(axis, label), mine):
                if _overlap(name, text.partition("=")[0].strip()):
                    short = axis.rpartition(".")[2]
                    raise UsageError(
                        f"--set {text}: the axis {short} sets {name}, choose its values with --grid {short}="
                    )

    def _bundles_before(self, model: str, step: Step, place: dict[str, str]) -> dict[str, PurePosixPath]:
        """The bundles that a step may name: of the steps before it, and of the models before its own."""
        models = self.experiment.models
        steps = itertools.takewhile(lambda s: s is not step, models[model])
        found = {s.name: folder(self.experiment, model, s, place) for s in steps}
        others = [m for m in itertools.takewhile(lambda m: m != model, models) if not models[m][-1].baseline]
        return {m: folder(self.experiment, m, models[m][-1], place) for m in others} | found


def _in_rounds(jobs: Mapping[PurePosixPath, Job]) -> list[list[Job]]:
    depth: dict[PurePosixPath, int] = {}
    for where, job in jobs.items():
        depth[where] = 1 + max((depth[f] for f in job.needs), default=-1)
    return [[j for f, j in jobs.items() if depth[f] == d] for d in range(max(depth.values()) + 1)]


def folder(experiment: Experiment, model: str, step: Step, cell: Mapping[str, str]) -> PurePosixPath:
    """Where a bundle lies: `model/missing0.1-seed111/step`, without what there is only one of."""
    parts = [model] if len(experiment.models) > 1 else []
    axes = [a for a in cell if step.axes is None or a in step.axes]
    if axes:
        parts.append("-".join(axis.rpartition(".")[2] + re.sub(r"[^\w.+-]", "_", cell[axis]) for axis in axes))
    if len(experiment.models[model]) > 1 or not parts:
        parts.append(step.name)
    return PurePosixPath(*parts)


def _overlap(one: str, other: str) -> bool:
    """Whether two settings are the same, or one is a section of the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _addressed(experiment: Experiment, text: str) -> tuple[str, str]:
    """Whom a setting is for, "" for all, and the setting."""
    path, equals, value = text.partition("=")
    address, colon, setting = path.rpartition(":")
    names = {*experiment.models, *(s.name for steps in experiment.models.values() for s in steps)}
    if colon and address not in names:
        raise UsageError(f"--set {text}: there is no model or step {address!r}, there are {sorted(names)}")
    return address, f"{setting}{equals}{value}"


def _with_grid(values: dict[str, Any], grid: Iterable[str]) -> dict[str, Any]:
    """The experiment with other values on some axes: `seed=1,2`, or names of those that an axis has."""
    for text in grid:
        axis, equals, wanted = text.partition("=")
        there = values.get("grid") or {}
        known = [a for a in there if axis in (a, a.rpartition(".")[2])]
        if not equals or len(known) != 1:
            raise UsageError(f"--grid {text}: write it as axis=value,value with one of {list(there)}")
        (name,), old = known, there[known[0]]
        if isinstance(old, dict):
            by_label = {_written(k): v for k, v in old.items()}
            unknown = [w for w in wanted.split(",") if w not in by_label]
            if unknown:
                raise UsageError(f"--grid {text}: {axis} has no {unknown[0]!r}, there are {list(by_label)}")
            new: Any = {w: by_label[w] for w in wanted.split(",")}
        else:
            new = parse_yaml(f"[{wanted}]", f"--grid {text}")
        values = values | {"grid": there | {name: new}}
    return values


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """A value with `{name}` filled in where the name is known; other braces stay."""
    if isinstance(value, str):
        return re.sub(BRACES, lambda m: words.get(m[1], m[0]), value)
    if isinstance(value, list):
        return [_filled(v, words) for v in value]
    return {k: _filled(v, words) for k, v in value.items()} if isinstance(value, dict) else value
