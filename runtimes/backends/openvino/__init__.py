"""OpenVINO on the CPU: the session, its int8 weights and its rewrite of recurrent layers."""

from runtimes.backends.backend import Backend
from runtimes.backends.session import SessionOptions

BACKEND = Backend(
    "openvino",
    "OpenVINO, fp32, bf16 or int8 on CPU",
    f"{__name__}.session:OpenVinoSession",
    ("onnx",),
    rank=50,
    colour="#2a9d8f",
    offers=(SessionOptions(), SessionOptions(reduced="bf16"), SessionOptions(reduced="int8")),
    precisions=("fp32", "fp16"),
    reduces={"cpu": ("bf16", "int8")},
)
