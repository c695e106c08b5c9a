"""CMERC and plain M3NET training: class loss, calibration, contrast, curriculum."""

from train.systems.cmerc.settings import CmercSettings

RECIPES = {
    "cmerc": (CmercSettings, "train.systems.cmerc.protocol:CmercProtocol", "train.systems.cmerc.own:cmerc"),
}
"""Checked `protocol:` section, protocol class, and what own data make of the recipe, of each system."""
