"""Training configuration: presets, overrides and checks. Needs no torch.

presets/<system or family>/<data set>.yaml    exactly the published hyper-parameters
presets/sample/<data set>.yaml                small recipes for small data, ours
presets/synthetic/<system>_<data set>.yaml    small recipes for what `mer synth` writes
presets/own/<system>.yaml                     what a recipe for data of one's own starts from, see `own_data`
presets/experiments/<name>.yaml               recipes over a grid, see `experiments`

A file may name another preset as its `base` and say only what differs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from mer_export import registry
from mer_export.data.spec import DataSpec
from mer_export.errors import UsageError
from mer_export.metrics.table import LOSSES
from mer_export.overrides import apply_overrides
from mer_export.registry import first_problem
from mer_export.untrusted.places import Allowed, Reach
from mer_export.untrusted.yaml_files import read_yaml
from train.balance import Balance
from train.encoders import CROSS_ENTROPY, from_folders
from train.recipe import recipe

FOLDER = Path(__file__).parent / "presets"
OWN = FOLDER / "own"
EXPERIMENTS = FOLDER / "experiments"
PRESETS: tuple[str, ...] = tuple(
    sorted(
        p.relative_to(FOLDER).with_suffix("").as_posix()
        for p in FOLDER.rglob("*.yaml")
        if not {OWN, EXPERIMENTS} & {*p.parents}
    )
)


Precision = Literal["auto", "fp32", "tf32", "bf16"]
DeviceData = Literal["auto", "always", "never"]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Plateau(Strict):
    """Lowers the learning rate when the loss on a split stops falling, as PyTorch's ReduceLROnPlateau does."""

    split: str = "valid"
    factor: float = Field(0.1, gt=0, lt=1)
    patience: int = Field(6, ge=0)


class Keep(Strict):
    """Which epoch's weights the bundle keeps: the last one, or the best one by `metric` on `split`.

    The published recipes choose on the test split, as their papers do.
    """

    rule: Literal["last", "best"] = "last"
    split: str = "test"
    metric: str = "weighted_f1"
    """A metric of the task, or a loss; its row in the table of metrics says which direction is better."""
    margin: float = Field(0.0, ge=0)
    """An epoch is better only by more than this."""
    patience: int | None = Field(None, ge=1)
    """Ends training after so many epochs without a better one, whichever weights are kept."""


class TrainConfig(Strict):
    """Everything a training run depends on, apart from the data itself. The resolved copy stays in the bundle."""

    title: str = ""
    """What progress and reports call it."""
    system: str
    """One of `mer list`."""
    model: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """The system's configuration; checked, defaults filled in."""
    data: DataSpec = Field(default_factory=DataSpec)
    """How the data are read, over what they say of themselves (docs/data.md)."""
    protocol: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """The system's training settings; checked, defaults filled in."""
    train_splits: tuple[str, ...] = Field(("train",), min_length=1)
    """Splits that are trained on."""
    evaluate_splits: tuple[str, ...] = ("test",)
    """Splits that are measured after every epoch; those that the data lack are left out."""
    epochs: int = Field(ge=1)
    """Passes over the training splits."""
    batch: int = Field(16, ge=1)
    """Items per step and process."""
    group_by_length: bool = False
    """Makes batches of items of like length: less padding per step, other batches than a recipe without it has."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate, of parameters that the protocol gives none of their own."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 in the gradient, of the same parameters."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """`adamw` decays weights apart from the gradient."""
    plateau: Plateau | None = None
    warm_up: float | None = Field(None, ge=0, lt=1)
    """Part of all steps over which the learning rate rises from 0, to fall to 0 over the rest; None leaves it."""
    clip: float | None = Field(None, gt=0)
    """Largest gradient norm, none in the published recipes."""
    average: float | None = Field(None, gt=0, lt=1)
    """Decay per step of a moving average of the weights, which is then what is evaluated and kept."""
    seed: int = Field(0, ge=0)
    """Of fresh weights, the order of the data, and dropout."""
    reseed: Literal["same", "epoch"] = "epoch"
    """Random streams restart at every pass: from `seed` itself as published, or from `seed` plus the epoch number."""
    keep: Keep = Keep()
    """Which epoch's weights stay: the last one's, or those that are best by a metric on a split."""
    precision: Precision = "auto"
    """`auto`: bf16 autocast on a GPU that has it, otherwise fp32. `tf32` rounds products on a GPU; fp32 never does."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`cuda` is the first GPU, or each process's own where there are several."""
    compile: bool = False
    """Compiles the network for training (`torch.compile`): a slow first step, faster ones after it."""
    fast_dropout: bool = False
    """Draws dropout on a CPU from a faster generator: other numbers than a run without it, equally distributed."""
    device_data: DeviceData = "auto"
    """Whether padded data stay on the device: `auto` on a GPU, where they take a quarter of its free memory at most."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; None leaves PyTorch's choice. One is faster for small models."""
    save_every: int = Field(1, ge=1)
    """Epochs between resumable states."""
    keep_fp32: tuple[str, ...] = ()
    """Modules that exports of a reduced precision leave in fp32, with their parts; see `mer debug parity`."""
    balance: Balance = Balance()
    """What is done for rare classes; of systems and tasks whose loss is the cross-entropy of one class."""
    init: str | None = None
    """A bundle of the same network whose weights training starts from; None starts from random ones."""
    licence: str = "unknown: ask the owner of the training data"
    """Of the training data; it stays with the weights."""

    @field_validator("model")
    @classmethod
    def _model(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return _resolve(_system(info).config, values)

    @field_validator("protocol")
    @classmethod
    def _protocol(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return _resolve(recipe(_system(info).name).settings, values)

    @field_validator("keep")
    @classmethod
    def _measured(cls, keep: Keep, info: ValidationInfo) -> Keep:
        if (keep.rule == "last" and keep.patience is None) or "model" not in info.data:
            return keep
        system = _system(info)
        names = [m.name for m in (*system.task(system.parse(info.data["model"])).family.metrics, *LOSSES)]
        if keep.metric.partition("/")[0] not in names:
            raise ValueError(f"keep.metric {keep.metric!r} is not measured by this task, there are {names}")
        return keep

    @field_validator("balance")
    @classmethod
    def _balanced(cls, balance: Balance, info: ValidationInfo) -> Balance:
        if balance.rule == "none" or "protocol" not in info.data or "model" not in info.data:
            return balance
        system = _system(info)
        kind = system.task(system.parse(info.data["model"])).kind
        loss = recipe(system.name).settings.model_validate(info.data["protocol"]).class_loss(kind)
        if loss != CROSS_ENTROPY:
            raise ValueError(f"balance.rule {balance.rule} is for a plain {CROSS_ENTROPY}, {system.name} has {loss}")
        return balance

    def seed_of(self, epoch: int) -> int:
        """The seed that the random streams of one epoch (from 0) start from."""
        return self.seed if self.reseed == "same" else self.seed + 1 + epoch


def load_preset(
    name: str, overrides: Iterable[str] = (), outside: Iterable[Path] | None = None, data: Path = Path()
) -> TrainConfig:
    """A preset with `a.b=value` overrides applied; see `resolve_config`.

    Raises:
        UsageError: unknown preset or field, or a value that does not fit.
    """
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}, there are {list(PRESETS)}")
    return load_config(FOLDER / f"{name}.yaml", overrides, outside, data)


def resolve_config(
    system: str,
    preset: str | None,
    path: Path | None,
    overrides: Iterable[str] = (),
    outside: Iterable[Path] | None = None,
    data: Path = Path(),
    **values: Any,
) -> TrainConfig:
    """The configuration that a command line asks for: a preset or a file, overrides, then `values` that are not None.

    Paths that the file names lead into the directory of `data`, or into `outside`.

    Raises:
        UsageError: unknown system or preset, both or neither given, a value that does not fit, or another system's.
        InputError: the file names a path that leads elsewhere.
    """
    registry.get(system)
    overrides = [*overrides, *(f"{name}={value}" for name, value in values.items() if value is not None)]
    if (preset is None) == (path is None):
        raise UsageError("pass either --preset or --config; `mer list` names the presets, `mer init` writes a recipe")
    if preset is not None:
        found = load_preset(preset if "/" in preset else f"{system}/{preset}", overrides, outside, data)
    else:
        found = load_config(Path(path or ""), overrides, outside, data)
    if found.system != system:
        raise UsageError(f"{preset or path} is a recipe for {found.system}, not for {system}")
    return found


TRAINING_READS = ("data.emotions.vectors", "data.emotions.capitalise")
"""What of the data section training itself reads, whatever the format."""
DESCRIBES = ("title", "system", "model", "data", "licence")
"""The sections that say what a network is and takes, apart from how it is trained."""


def network_config(
    system: str,
    preset: str | None,
    path: Path | None,
    overrides: Iterable[str] = (),
    outside: Iterable[Path] | None = None,
) -> tuple[dict[str, Any], Allowed]:
    """What is kept of a checkpoint's network, and where paths in it may lead.

    A whole configuration; of a file without training what it says.

    Raises:
        UsageError, InputError: as `resolve_config` does.
    """
    overrides = [*overrides]
    said = read_settings(path) if path is not None and preset is None else {}
    if not said or "epochs" in said:
        whole = resolve_config(system, preset, path, overrides, outside)
        return whole.model_dump(mode="json"), whole.data.allowed
    # Training asks for epochs; a checkpoint has had them.
    values = apply_overrides({"system": system, "epochs": 1, **said}, overrides)
    found = settled_config(values, str(path), Allowed.by(outside, apply_overrides({}, overrides)))
    if found.system != system:
        raise UsageError(f"{path} is for {found.system}, not for {system}")
    return {n: v for n, v in found.model_dump(mode="json").items() if n in DESCRIBES}, found.data.allowed


def load_config(
    path: Path | str, overrides: Iterable[str] = (), outside: Iterable[Path] | None = None, data: Path = Path()
) -> TrainConfig:
    """A configuration file with `a.b=value` overrides applied; raises as `resolve_config` does.

    What it does not say of an encoder is taken from the encoder's folder.
    """
    overrides = [*overrides]
    values = apply_overrides(read_settings(Path(path)), overrides)
    return settled_config(values, str(path), Allowed.by(outside, apply_overrides({}, overrides)), data)


def settled_config(values: dict[str, Any], source: str, allowed: Allowed, data: Path = Path()) -> TrainConfig:
    """Settings as a checked configuration, completed from encoder folders; its paths lead beside `data` or as allowed.

    Raises:
        UsageError: a value that does not fit.
        InputError: a path that leads elsewhere.
    """
    reach = Reach(data if data.is_dir() else data.parent, allowed)
    config = parse_config(_with_folders(values, reach), source=source)
    for name, folder in config.data.folders.items():
        reach.path(folder, f"{source}: data.{name}", Path())
    if config.init:
        reach.path(config.init, f"{source}: init", Path())
    return config.model_copy(update={"data": config.data.allowing(allowed)})


def _with_folders(values: dict[str, Any], reach: Reach) -> dict[str, Any]:
    """Settings as they were written, completed from encoder folders; what is wrong with them is left to the checks."""
    model, protocol = values.get("model") or {}, values.get("protocol") or {}
    try:
        settings = recipe(values["system"]).settings.model_validate(protocol)
    except (KeyError, UsageError, ValidationError):
        return values
    for name, file in settings.files.items():
        reach.path(file, f"protocol.{name}", Path())
    if not isinstance(model, dict):
        return values
    completed = from_folders(model, settings)
    return values | {"model": completed} if completed else values


def read_settings(path: Path, depth: int = 0) -> dict[str, Any]:
    """The settings of a file over those of its base."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds {type(values).__name__}, expected a mapping of settings")
    base = values.pop("base", None)
    if base is None:
        return values
    if base not in PRESETS or depth >= len(PRESETS):
        raise UsageError(f"{path}: base {base!r} is not a preset, or has itself as its base; there are {list(PRESETS)}")
    return merged(read_settings(FOLDER / f"{base}.yaml", depth + 1), values)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section."""
    both = {k: merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}


def parse_config(values: dict[str, Any], source: str = "training config") -> TrainConfig:
    """A checked configuration; raises UsageError naming the first wrong value."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: {first_problem(error)}") from None


def dump_config(config: TrainConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """The first field in which two dumped configurations differ, as `section.field: old, now new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if old == new else f"{path}: {old!r}, now {new!r}"


def main_process() -> bool:
    """False in the other processes of a run with several (as started by torchrun or accelerate launch)."""
    return os.environ.get("RANK", "0") == "0"


def _system(info: ValidationInfo) -> registry.System:
    try:
        return registry.get(info.data.get("system", ""))
    except UsageError as error:
        raise ValueError(str(error)) from None


def _resolve(kind: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    try:
        return kind.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
