"""How FacialMMT is trained: passes over expressions and over utterances in turn."""

from train.systems.facialmmt.settings import FacialMmtSettings

RECIPES = {
    "facialmmt": (FacialMmtSettings, "train.systems.facialmmt.protocol:FacialMmtProtocol"),
}
"""Checked `protocol:` section and protocol class of each system."""
