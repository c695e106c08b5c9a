"""An encoder that somebody exported: an ONNX or TorchScript file, and a recipe that says what goes in and comes out.

There is no network in PyTorch: the file, with what its recipe asks for put around it, is all there is.
"""

from mer_export.encoders.config import contract, task
from mer_export.encoders.file.config import FORMS, FileConfig
from mer_export.registry import System

SYSTEM = System(
    name="file",
    title="Encoder from an ONNX or TorchScript file",
    paper="of whoever made the file",
    source="the file's own",
    config=FileConfig,
    variants=FORMS,
    variant_of=lambda config: config.form,
    contract=contract,
    task=task,
    examples="mer_export.encoders.examples:examples",
    file=True,
)
