"""How each system is trained: one folder per family of systems, found through one table."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from mer_export.errors import UsageError
from mer_export.registry import resolve
from train.protocols.cmerc.settings import CmercSettings
from train.protocols.emt.settings import EmtSettings, MultSettings, TfrNetSettings
from train.protocols.facialmmt.settings import FacialMmtSettings
from train.protocols.mtee.settings import MteeSettings
from train.protocols.tab.settings import TabSettings


@dataclass(frozen=True)
class Recipe:
    """`settings` is the checked `protocol:` section; `protocol` a `module:class` string, imported when training."""

    settings: type[BaseModel]
    protocol: str


RECIPES = {
    "cmerc": Recipe(CmercSettings, "train.protocols.cmerc.protocol:CmercProtocol"),
    "emt": Recipe(EmtSettings, "train.protocols.emt.protocol:EmtProtocol"),
    "facialmmt": Recipe(FacialMmtSettings, "train.protocols.facialmmt.protocol:FacialMmtProtocol"),
    "mtee": Recipe(MteeSettings, "train.protocols.mtee.protocol:MteeProtocol"),
    "mult": Recipe(MultSettings, "train.protocols.emt.baselines:MultProtocol"),
    "tab": Recipe(TabSettings, "train.protocols.tab.protocol:TabProtocol"),
    "tfr_net": Recipe(TfrNetSettings, "train.protocols.emt.baselines:TfrNetProtocol"),
}


def recipe(system: str) -> Recipe:
    """The recipe of a system; raises UsageError with the trainable ones."""
    if system not in RECIPES:
        raise UsageError(f"{system!r} cannot be trained, there are recipes for {list(RECIPES)}")
    return RECIPES[system]


def protocol_class(system: str) -> type:
    """The protocol class of a system."""
    return resolve(recipe(system).protocol)
