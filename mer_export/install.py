"""What to type where a package is missing: the one place that knows the name this project is installed under."""

from __future__ import annotations

from typing import Literal

DISTRIBUTION = "mer-export"
"""The package `mer` of the public index is somebody else's."""
Extra = Literal[
    "train",
    "export",
    "cpu",
    "gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "columnar",
    "hdf5",
    "text",
    "encoders",
    "faces",
    "media",
    "opensmile",
    "report",
    "tensorboard",
    "mlflow",
    "wandb",
    "hub",
    "serve",
    "triton",
    "scale",
    "baselines",
]


def install_hint(*extras: Extra) -> str:
    """`pip install 'mer-export[cpu]'`; with several extras, any of them will do."""
    return "pip install " + " or ".join(f"'{DISTRIBUTION}[{extra}]'" for extra in extras)


def not_installed(package: str, *extras: Extra) -> str:
    """The sentence of an error: which package is missing, and what to type.

    Args:
        package: its name, with what it is needed for where that is not plain.
        extras: those that bring it; any of them will do.
    """
    return f"{package} is not installed: {install_hint(*extras)}"
