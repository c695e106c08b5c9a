"""CMERC and plain M3NET training: class loss, calibration, contrast, curriculum."""

from train.systems.cmerc.settings import CmercSettings

RECIPES = {
    "cmerc": (CmercSettings, "train.systems.cmerc.protocol:CmercProtocol"),
}
"""Checked `protocol:` section and protocol class of each system."""
