"""What stands in bundle.json, and how it is written and read."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mer_export.bucket import Bucket
from mer_export.bundle.files import read_plain
from mer_export.contract import Contract
from mer_export.errors import BundleError, InputError, UnsupportedError
from mer_export.task import Task
from mer_export.untrusted.json_files import parse_json

SCHEMA_VERSION = 2
MANIFEST = "bundle.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
JOURNAL = ".journal.json"
STAGING = ".staging"
LOCK = ".lock"

Model = TypeVar("Model", bound=BaseModel)
MOST = 64 << 20
"""Bytes of a manifest or journal."""
FIRST_SEALED = 2
"""The schema version from which a manifest has a checksum."""
SEAL = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\Z')


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileEntry(Strict):
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


class FeatureStatistics(Strict):
    """What the training data of one input looked like: the fingerprint that foreign features are held against.

    `extractor` and the `sha256` of its weights say what made them, where the data said so.
    """

    UNKNOWN: ClassVar[str] = "unknown"

    extractor: str = UNKNOWN
    sha256: str = ""
    width: int
    mean: float
    std: float
    minimum: float
    maximum: float


class Variant(Strict):
    """One exported artefact. `batch` 0 means dynamic; `model` is the path of the file a runtime loads.

    With `stages` there is one file for each of them, `<stage>/<file>`, and `model` is that of the last one.
    """

    format: str
    precision: str
    lengths: Bucket
    batch: int
    model: str
    exporter: str
    stages: tuple[str, ...] = ()
    mac: str = ""
    """Says to the user who exported a program that the files are theirs; see `mer_export.trust`."""
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def device(self) -> str:
        """Of the forms that a format has for a device each, which one this is; it runs on the others too."""
        return "cuda" if self.options.get("device") == "cuda" else "cpu"

    @property
    def form(self) -> str:
        """What tells variants of one format and precision apart: `utterances8-bdynamic`, `utterances8-b4-cuda`."""
        batch = "dynamic" if self.batch == 0 else str(self.batch)
        stages = "-stages" if self.stages else ""
        device = "" if self.device == "cpu" else f"-{self.device}"
        return f"{self.lengths.name}-b{batch}{stages}{device}"

    @property
    def name(self) -> str:
        return f"{self.format}-{self.precision}-{self.form}"

    @property
    def models(self) -> list[str]:
        """The files that a runtime loads: the model, or one for each stage."""
        path = PurePosixPath(self.model)
        return [str(path.parent.parent / s / path.name) for s in self.stages] or [self.model]


class Manifest(Strict):
    """Content of bundle.json."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    system: str
    variant: str
    config: dict[str, Any]
    task: Task
    contract: Contract
    features: dict[str, FeatureStatistics] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    encoders: dict[str, list[str]] = Field(default_factory=dict)
    """Folders of the bundle with the encoders that make an input of raw things, by input; see `mer_export.encoders`."""
    variants: list[Variant] = Field(default_factory=list)
    files: dict[str, FileEntry] = Field(default_factory=dict)

    @property
    def weights(self) -> FileEntry:
        """The weights in PyTorch; raises UnsupportedError where there are none, as of an encoder from a file."""
        if WEIGHTS not in self.files:
            raise UnsupportedError(
                f"this bundle ({self.system}) has no weights in PyTorch, which other files are made of and compared "
                "with: it runs as it is"
            )
        return self.files[WEIGHTS]


class Journal(Strict):
    """What a change is about to do: once it is on the disk, the change is made, sooner or later."""

    manifest: Manifest
    moves: list[str]
    removals: list[str]


def seal(manifest: Manifest | dict[str, Any]) -> bytes:
    """The bytes of bundle.json: the manifest and, as its last entry, the SHA-256 of all that stands before."""
    if isinstance(manifest, Manifest):
        manifest = manifest.model_dump(mode="json") | {"schema_version": SCHEMA_VERSION}
    text = json.dumps(manifest, indent=1).encode()
    checksum = hashlib.sha256(text.removesuffix(b"\n}")).hexdigest()
    return text.removesuffix(b"\n}") + f',\n "checksum": "{checksum}"\n}}'.encode()


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file; one of an earlier version has no checksum.

    Raises:
        BundleError: missing, damaged, of a newer version, or not of this form.
    """
    raw = read_plain(path, MOST)
    content = _parse(path, raw)
    checksum = content.pop("checksum", None)
    if checksum is not None or content.get("schema_version") == FIRST_SEALED:
        found = SEAL.search(raw)
        if found is None or hashlib.sha256(raw[: found.start()]).hexdigest().encode() != found[1]:
            raise BundleError(f"{path} does not match its checksum: it was changed or is damaged")
    return _model(path, content, Manifest)


def read_journal(path: Path) -> Journal:
    """The journal in a file; raises as `read_manifest`."""
    return _model(path, _parse(path, read_plain(path, MOST)), Journal)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        content = parse_json(raw, str(path))
        version = (content.get("manifest") or content).get("schema_version")
    except (InputError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(f"{path} has schema version {version}, this mer reads up to {SCHEMA_VERSION}: update mer")
    return dict(content)


def _model(path: Path, content: dict[str, Any], kind: type[Model]) -> Model:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise BundleError(f"{path} is not valid: {where}: {first['msg']}") from None
