"""RoBERTa, Speech-BERT and a time-asynchronous branch (TAB) over the sentence vectors of neighbouring utterances.

Papers: Wu, Zhang, Woodland, "Emotion recognition by fusing time synchronous and time asynchronous representations",
ICASSP 2021 (arXiv 2010.14102), for the TAB; Siriwardhana et al., "Jointly Fine-Tuning 'BERT-like' Self Supervised
Models to Improve Multimodal Speech Emotion Recognition", Interspeech 2020 (arXiv 2008.06682), for the two encoders.
Public repository: nataschalemos/UCL-MSC-Project-Code, which joins them.

Encoders: the repository; its tokens of sound are those of the second paper, its sentence vectors those of the first.
"""

from mer_export.models.tab.config import TabConfig, contract, task
from mer_export.registry import System

SYSTEM = System(
    name="tab",
    title="RoBERTa + Speech-BERT + TAB: utterance encoders and a time-asynchronous branch over the context",
    paper="ICASSP 2021, arXiv 2010.14102, and Interspeech 2020, arXiv 2008.06682",
    source="nataschalemos/UCL-MSC-Project-Code",
    config=TabConfig,
    variants=("fusion", "lhs", "text_tab", "audio_tab", "tab"),
    variant_of=lambda config: config.variant,
    contract=contract,
    task=task,
    encoders={
        "text": "roberta-large inside the network; bert-base-uncased, first token, of the sentences around it",
        "audio": "vq-wav2vec k-means to tokens; Speech-BERT inside the network",
    },
    network="mer_export.models.tab.network:Tab",
    weights="mer_export.models.tab.weights:WEIGHT_MAP",
)
