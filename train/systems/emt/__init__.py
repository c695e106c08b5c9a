"""EMT-DLFR training for missing features, and its baselines TFR-Net and MulT."""

from train.systems.emt.settings import EmtSettings, MultSettings, TfrNetSettings

RECIPES = {
    "emt": (EmtSettings, "train.systems.emt.protocol:EmtProtocol"),
    "mult": (MultSettings, "train.systems.emt.baselines:MultProtocol"),
    "tfr_net": (TfrNetSettings, "train.systems.emt.baselines:TfrNetProtocol"),
}
"""Checked `protocol:` section and protocol class of each system."""
