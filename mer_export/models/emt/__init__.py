"""EMT-DLFR: sentiment of one utterance, robust to missing tokens, frames and modalities.

Paper: Sun, Lian, Liu, Tao, "Efficient Multimodal Transformer with Dual-Level Feature Restoration for Robust Multimodal
Sentiment Analysis", IEEE Transactions on Affective Computing 2023 (arXiv 2208.07589). Public repository:
sunlicai/EMT-DLFR.
"""

from mer_export.models.emt.config import EmtConfig, contract, task
from mer_export.models.utterance import ENCODERS
from mer_export.registry import System

SYSTEM = System(
    name="emt",
    title="EMT-DLFR: efficient multimodal transformer with dual-level feature restoration",
    paper="IEEE Transactions on Affective Computing 2023, arXiv 2208.07589",
    source="sunlicai/EMT-DLFR",
    config=EmtConfig,
    variants=("tokens", "vectors"),
    variant_of=lambda config: "tokens" if config.bert else "vectors",
    contract=contract,
    task=task,
    encoders=ENCODERS,
    network="mer_export.models.emt.network:Emt",
    weights="mer_export.models.emt.weights:WEIGHT_MAP",
)
