"""Training of MTEE and its baselines."""

from train.systems.mtee.settings import MteeSettings

RECIPES = {
    "mtee": (MteeSettings, "train.systems.mtee.protocol:MteeProtocol", "train.systems.mtee.own:mtee"),
}
"""Checked `protocol:` section, protocol class, and what own data make of the recipe, of each system."""
