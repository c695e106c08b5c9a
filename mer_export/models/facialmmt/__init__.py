"""FacialMMT: emotion of an utterance from the whole dialogue's words, the voice, and faces weighed by their expression.

Paper: Zheng, Yu, Xia, Wang, "A Facial Expression-Aware Multimodal Multi-task Learning Framework for Emotion Recognition
in Multi-party Conversations", ACL 2023. Public repository: NUSTM/FacialMMT.

Encoders: the paper's section on single-modal features, and the files that the repository reads.
"""

from mer_export.models.facialmmt.config import FacialMmtConfig, contract, task
from mer_export.registry import System

SYSTEM = System(
    name="facialmmt",
    title="FacialMMT: facial expression-aware multimodal transformer for multi-party conversations",
    paper="ACL 2023",
    source="NUSTM/FacialMMT",
    config=FacialMmtConfig,
    variants=("fusion", "end_to_end", "vision", "face"),
    variant_of=lambda config: config.variant,
    contract=contract,
    task=task,
    encoders={
        "text": "roberta-large or bert-large inside the network",
        "audio": "facebook/wav2vec2-base-960h: frames of its last layer, 20 ms each",
        "vision": "MTCNN, InceptionResNetV1 on faces of 160x160 (facenet-pytorch), 512 wide; Swin inside the network",
    },
    network="mer_export.models.facialmmt.network:network",
    weights="mer_export.models.facialmmt.weights:WEIGHT_MAP",
    stages="mer_export.models.facialmmt.stages:stages",
)
