"""How FacialMMT is trained: passes over expressions and over utterances in turn."""

from train.systems.facialmmt.settings import FacialMmtSettings

RECIPES = {
    "facialmmt": (
        FacialMmtSettings,
        "train.systems.facialmmt.protocol:FacialMmtProtocol",
        "train.systems.facialmmt.own:facialmmt",
    ),
}
"""Checked `protocol:` section, protocol class, and what own data make of the recipe, of each system."""
