"""MTEE: modality-transferable emotion embeddings, and the baselines of the same public code.

Paper: Dai, Liu, Yu, Fung, "Modality-Transferable Emotion Embeddings for Low-Resource Multimodal Emotion Recognition",
AACL-IJCNLP 2020. Public repository: wenliangdai/Modality-Transferable-MER.

Encoders: the paper's section on data and features.
"""

from mer_export.models.mtee.config import MODELS, MteeConfig, contract, task
from mer_export.registry import System

SYSTEM = System(
    name="mtee",
    title="MTEE: emotion embeddings that transfer to unseen emotions, with recurrent and transformer baselines",
    paper="AACL-IJCNLP 2020",
    source="wenliangdai/Modality-Transferable-MER",
    config=MteeConfig,
    variants=MODELS,
    variant_of=lambda config: config.variant,
    contract=contract,
    task=task,
    encoders={
        "text": "GloVe 840B, 300 wide, a vector per word",
        "audio": "COVAREP, 74 wide",
        "vision": "FACET 4.2, 35 wide",
    },
    network="mer_export.models.mtee.network:build",
    weights="mer_export.models.mtee.weights:WEIGHT_MAP",
    shared="mer_export.models.mtee.emotions:shared_inputs",
)
