"""The `protocol:` section of mtee; needs no torch."""

from __future__ import annotations

from typing import Literal

from train.encoders import Settings


class MteeSettings(Settings):
    """MTEE (section 6)."""

    semantics: Literal["batch", "single"] = "single"
    """`batch` is the published behaviour of the transformer baseline, where samples of a batch attend to each other."""
    loss: Literal["bce", "ce", "l1", "mse"] = "bce"
    weigh_positives: bool = True
    """bce: positives count as negatives per positive of their label in the training split."""
    shuffle: bool = True
