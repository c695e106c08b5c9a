"""vq-wav2vec with k-means quantisation: a waveform becomes pairs of code-book indices, the words of Speech-BERT.

Its group norms average over the whole utterance. Here they leave padding out, so that utterances of different lengths
run side by side; an utterance is never cut.
"""

from mer_export.encoders.config import task
from mer_export.encoders.vq_wav2vec.config import VqEncoderConfig, contract
from mer_export.registry import System

SYSTEM = System(
    name="vq_wav2vec",
    title="vq-wav2vec: speech as tokens",
    paper="Baevski, Schneider, Auli, ICLR 2020",
    source="facebookresearch/fairseq",
    config=VqEncoderConfig,
    variants=("kmeans",),
    variant_of=lambda config: "kmeans",
    contract=contract,
    task=task,
    network="mer_export.encoders.vq_wav2vec.network:VqWav2vec",
    weights="mer_export.encoders.vq_wav2vec.network:WEIGHT_MAP",
    examples="mer_export.encoders.examples:examples",
)
