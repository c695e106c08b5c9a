"""TensorRT and TensorRT-RTX engines on a CUDA device."""

from runtimes.backends.backend import Backend
from runtimes.backends.session import SessionOptions

BACKEND = Backend(
    "tensorrt",
    "TensorRT or TensorRT-RTX",
    f"{__name__}.session:TensorRtSession",
    ("tensorrt",),
    rank=60,
    colour="#6a9a2b",
    offers=(SessionOptions(device="cuda"),),
    precisions=("fp32", "fp16", "bf16"),
)
