"""FacialMMT's Swin as an encoder of face crops: what it knows of a face, or the expressions that it sees in it."""

from mer_export.encoders.config import contract, task
from mer_export.encoders.swin.config import OUTPUTS, SwinEncoderConfig
from mer_export.registry import System

SYSTEM = System(
    name="swin",
    title="Swin of faces and their expressions",
    paper="Zheng et al., ACL 2023, section 3.4; Liu et al., ICCV 2021",
    source="NUSTM/FacialMMT",
    config=SwinEncoderConfig,
    variants=OUTPUTS,
    variant_of=lambda config: config.output,
    contract=contract,
    task=task,
    network="mer_export.encoders.swin.network:SwinFaces",
    examples="mer_export.encoders.examples:examples",
)
