"""The systems this toolkit knows: the only place that tells one from another.

Each system's package offers a `SYSTEM` record. Importing it needs no torch; the network is imported when it is built.
Encoders, which make the features that systems read, are of the same form and stand in a package of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ValidationError

from mer_export.contract import Contract
from mer_export.errors import UnsupportedError, UsageError
from mer_export.stages import Stage
from mer_export.task import Task

if TYPE_CHECKING:
    from torch import nn

Room = Literal["models", "encoders"]
ROOMS: tuple[Room, ...] = get_args(Room)


@dataclass(frozen=True)
class System:
    """One published system.

    `network`, `weights` and `shared` are `module:attribute` strings, resolved only when used: the module class, made
    from a config; the `WEIGHT_MAP` between the authors' parameter names and ours; for systems with shared inputs a
    function of (config, what was found in data or checkpoint) that gives their values.
    """

    name: str
    title: str
    paper: str
    source: str
    config: type[BaseModel]
    variants: tuple[str, ...]
    variant_of: Callable[[Any], str]
    contract: Callable[[Any], Contract]
    task: Callable[[Any], Task]
    encoders: Mapping[str, str] = field(default_factory=dict)
    """By modality what its authors read raw things with; the package says where that is written."""
    network: str = ""
    weights: str = ""
    shared: str | None = None
    stages: str | None = None
    """A function of a config that gives the stages which can be exported apart."""
    examples: str | None = None
    """A function of a bundle that gives samples to prove exports on, where random numbers are none."""
    compute: str | None = None
    """Of an encoder without a network: a function of a config that gives what makes features of a raw thing."""

    file: bool = False
    """Whether somebody's file, run as it is, stands in place of a network."""

    def parse(self, values: dict[str, Any]) -> Any:
        """A checked config of this system; raises UsageError naming the first wrong value."""
        try:
            return self.config.model_validate(values)
        except ValidationError as error:
            raise UsageError(f"{self.name} config: {first_problem(error)}") from None

    def complete(self, contract: Contract, config: Any, found: Mapping[str, Any]) -> Contract:
        """`contract` with the values of its shared inputs; raises InputError where `found` does not give them."""
        for name, table in (resolve(self.shared)(config, found) if self.shared else {}).items():
            contract = contract.with_shared(name, table)
        return contract

    def stages_of(self, config: Any, names: Sequence[str] = ()) -> tuple[Stage, ...]:
        """The stages of a network that can be exported apart, or those that an export has under these names.

        Raises:
            UnsupportedError: it has none.
        """
        found: tuple[Stage, ...] = resolve(self.stages)(config, names) if self.stages else ()
        if not found:
            raise UnsupportedError(f"{self.name} {self.variant_of(config)} has no stages: export it without --stages")
        return found

    def require_network(self) -> None:
        """Raises UnsupportedError where features are computed without one."""
        if not self.network:
            raise UnsupportedError(f"encoders of kind {self.name} have no network: there is nothing to export")

    def build(self, config: Any) -> nn.Module:
        """The network with fresh weights, in evaluation mode; raises as `require_network` does."""
        self.require_network()
        return resolve(self.network)(config).eval()


@cache
def names(room: Room = "models") -> tuple[str, ...]:
    """The systems that there are: one package each under `mer_export/models`; or the kinds of encoders."""
    return tuple(sorted(m.name for m in iter_modules([str(Path(__file__).parent / room)]) if m.ispkg))


def get(name: str) -> System:
    """The system, or kind of encoder, of that name; raises UsageError with the known names."""
    for room in ROOMS:
        if name in names(room):
            return import_module(f"mer_export.{room}.{name}").SYSTEM
    raise UsageError(f"no system {name!r}, there are {list(names())}")


def resolve(target: str) -> Any:
    """Imports `module:attribute`."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def first_problem(error: ValidationError) -> str:
    """The first problem of a validation as `where: what (value)`."""
    problem = error.errors()[0]
    where = ".".join(str(p) for p in problem["loc"]) or "value"
    return f"{where}: {problem['msg']} (got {problem['input']!r})"
