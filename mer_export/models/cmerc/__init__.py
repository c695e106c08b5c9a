"""CMERC: multimodal emotion recognition calibration in conversations, on the M3NET network.

Papers: Tu et al., "Multimodal Emotion Recognition Calibration in Conversations", ACM MM 2024 (training);
Chen et al., "Multivariate, Multi-Frequency and Multimodal: Rethinking Graph Neural Networks for Emotion Recognition
in Conversation", CVPR 2023 (network). Public repositories: HITSZ-HLT/CMERC, feiyuchen7/M3NET.

Encoders: those of the files that the repositories read; of text COSMIC's public feature extraction
(declare-lab/conv-emotion), of sound and faces MMGCN's files (hujingwen6666/MMGCN).
"""

from mer_export.models.cmerc.config import BASE_MODELS, CmercConfig, contract, task
from mer_export.registry import System

SYSTEM = System(
    name="cmerc",
    title="CMERC on M3NET: conversational emotion recognition with a hypergraph",
    paper="ACM MM 2024 (CMERC), CVPR 2023 (M3NET)",
    source="HITSZ-HLT/CMERC, feiyuchen7/M3NET",
    config=CmercConfig,
    variants=tuple(BASE_MODELS),
    variant_of=lambda config: config.base_model,
    contract=contract,
    task=task,
    encoders={
        "text": "roberta-large, fine-tuned: first token of the last four layers, last one first",
        "audio": "openSMILE IS10 (IEMOCAP, 1582 wide); 300 wide as in the authors' file (MELD)",
        "vision": "DenseNet on faces: DenseFace, 342 wide",
    },
    network="mer_export.models.cmerc.network:Cmerc",
    weights="mer_export.models.cmerc.weights:WEIGHT_MAP",
    stages="mer_export.models.cmerc.stages:stages",
)
