"""EMT-DLFR training for missing features, and its baselines TFR-Net and MulT."""

from train.systems.emt.settings import EmtSettings, MultSettings, TfrNetSettings

RECIPES = {
    "emt": (EmtSettings, "train.systems.emt.protocol:EmtProtocol", "train.systems.emt.own:emt"),
    "mult": (MultSettings, "train.systems.emt.baselines:MultProtocol", "train.systems.emt.own:mult"),
    "tfr_net": (TfrNetSettings, "train.systems.emt.baselines:TfrNetProtocol", "train.systems.emt.own:tfr_net"),
}
"""Checked `protocol:` section, protocol class, and what own data make of the recipe, of each system."""
