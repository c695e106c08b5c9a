"""How each system is trained: a recipe, announced by the folder of its family under `train/systems`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from mer_export.errors import UsageError
from mer_export.registry import resolve
from train import systems
from train.encoders import Settings


@dataclass(frozen=True)
class Recipe:
    """`settings` is the checked `protocol:` section; the others are `module:attribute` strings, imported when used.

    `protocol` is the class that trains. `own` is a function of `train.own_data.Own`, what a data set of one's own says,
    that gives the sections of the configuration that follow from it.
    """

    settings: type[Settings]
    protocol: str
    own: str


@cache
def recipes() -> dict[str, Recipe]:
    """The recipe of every trainable system, as the families announce them in `RECIPES`. Needs no torch."""
    families = sorted(m.name for m in iter_modules(systems.__path__))
    found: dict[str, tuple[type[Settings], str, str]] = {}
    for family in families:
        found |= import_module(f"{systems.__name__}.{family}").RECIPES
    return {name: Recipe(*found[name]) for name in sorted(found)}


def recipe(system: str) -> Recipe:
    """The recipe of a system; raises UsageError with the trainable ones."""
    if system not in recipes():
        raise UsageError(f"{system!r} cannot be trained, there are recipes for {list(recipes())}")
    return recipes()[system]


def protocol_class(system: str) -> type:
    """The protocol class of a system."""
    return resolve(recipe(system).protocol)
