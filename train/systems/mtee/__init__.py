"""Training of MTEE and its baselines."""

from train.systems.mtee.settings import MteeSettings

RECIPES = {
    "mtee": (MteeSettings, "train.systems.mtee.protocol:MteeProtocol"),
}
"""Checked `protocol:` section and protocol class of each system."""
