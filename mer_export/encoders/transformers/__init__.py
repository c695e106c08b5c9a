"""Encoders of the `transformers` package: text, speech and pictures, from a folder that it saved.

Its network is built from a config.json by the package's own classes; nothing of a folder is executed.
"""

from mer_export.encoders.config import contract, task
from mer_export.encoders.transformers.config import TransformersConfig
from mer_export.encoders.transformers.kinds import KINDS
from mer_export.registry import System

SYSTEM = System(
    name="transformers",
    title="Encoder of the transformers package",
    paper="Wolf et al., EMNLP 2020 (system demonstrations)",
    source="huggingface/transformers",
    config=TransformersConfig,
    variants=tuple(KINDS),
    variant_of=lambda config: config.kind,
    contract=contract,
    task=task,
    network="mer_export.encoders.transformers.network:TransformersEncoder",
    examples="mer_export.encoders.examples:examples",
)
