"""TFR-Net: crossmodal alignment and gated fusion, trained to rebuild what is missing, with BERT as text encoder.

Paper: Yuan, Li, Xu, Yu, "Transformer-based Feature Reconstruction Network for Robust Multimodal Sentiment Analysis",
ACM MM 2021. Public repositories: thuiar/TFR-Net, sunlicai/EMT-DLFR.
"""

from mer_export.models.padded_arrays import contract, task
from mer_export.models.tfr_net.config import FUSIONS, TfrNetConfig
from mer_export.models.utterance import ENCODERS
from mer_export.registry import System

SYSTEM = System(
    name="tfr_net",
    title="TFR-Net: transformer-based feature reconstruction network",
    paper="ACM MM 2021",
    source="thuiar/TFR-Net, sunlicai/EMT-DLFR",
    config=TfrNetConfig,
    variants=FUSIONS,
    variant_of=lambda config: config.fusion,
    contract=contract,
    task=task,
    encoders=ENCODERS,
    network="mer_export.models.tfr_net.network:TfrNet",
    weights="mer_export.models.tfr_net.weights:WEIGHT_MAP",
)
