"""MulT as EMT-DLFR's repository runs it on incomplete data, with BERT as a frozen text encoder.

Paper: Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019. Public
repositories: sunlicai/EMT-DLFR, thuiar/MMSA.
"""

from mer_export.models.mult.config import MultConfig
from mer_export.models.padded_arrays import contract, task
from mer_export.models.utterance import ENCODERS
from mer_export.registry import System

SYSTEM = System(
    name="mult",
    title="MulT: crossmodal transformer, on incomplete data",
    paper="ACL 2019",
    source="sunlicai/EMT-DLFR, thuiar/MMSA",
    config=MultConfig,
    variants=("tokens", "vectors"),
    variant_of=lambda config: "tokens" if config.bert else "vectors",
    contract=contract,
    task=task,
    encoders=ENCODERS,
    network="mer_export.models.mult.network:Mult",
    weights="mer_export.models.mult.weights:WEIGHT_MAP",
)
