"""The bundle: the one directory that commands hand to each other.

    bundle.json          manifest; the only file that says what belongs to the bundle
    model.safetensors    weights of the PyTorch model (float32)
    config.yaml          resolved training or import configuration
    variants/<name>/     one exported artefact each
    variants/<group>/    ONNX files of one precision, with the weights that they share
    samples/ reports/ train/

`manifest` says what stands in it and `consistency` what has to agree, `commit` changes it, `holds` keeps readers and
writers apart, `files` opens nothing through a link. Nothing in a bundle is ever unpickled.
"""

from mer_export.bundle.bundle import Bundle
from mer_export.bundle.commit import Commit
from mer_export.bundle.files import replacing, sha256, write_atomic
from mer_export.bundle.manifest import (
    CONFIG,
    JOURNAL,
    LOCK,
    MANIFEST,
    SCHEMA_VERSION,
    STAGING,
    WEIGHTS,
    FeatureStatistics,
    FileEntry,
    Manifest,
    Strict,
    Variant,
    seal,
)

__all__ = [
    "CONFIG",
    "JOURNAL",
    "LOCK",
    "MANIFEST",
    "SCHEMA_VERSION",
    "STAGING",
    "WEIGHTS",
    "Bundle",
    "Commit",
    "FeatureStatistics",
    "FileEntry",
    "Manifest",
    "Strict",
    "Variant",
    "replacing",
    "seal",
    "sha256",
    "write_atomic",
]
