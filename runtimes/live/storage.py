"""What stays of live dialogues on disk: JSON and arrays under their checksums, nothing that is unpickled.

    FOLDER/<checksum of the name>/dialogue.json     what was heard, and the checksum of each utterance's arrays
    FOLDER/<checksum of the name>/<checksum>.npz    features and other arrays of one utterance

A turn adds one file and replaces another, so a killed process leaves the dialogue before the turn or after it.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from mer_export.bundle import Bundle, write_atomic
from mer_export.bundle import sha256 as file_sha256
from mer_export.data.dialogues import Utterance
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.arrays import load_arrays
from mer_export.untrusted.file_state import states
from mer_export.untrusted.json_files import read_json_object
from runtimes.predict.live import Heard

INDEX = "dialogue.json"
VERSION = 1
LOOK = 60.0
"""Seconds between two looks for dialogues that are over."""


def model_key(bundle: Bundle) -> str:
    """What tells models apart that take other features, or make them with other encoders."""
    folders = tuple(f"{folder}/" for own in bundle.manifest.encoders.values() for folder in own)
    encoders = {n: f.sha256 for n, f in bundle.manifest.files.items() if folders and n.startswith(folders)}
    inputs = bundle.manifest.contract.model_dump(mode="json")["inputs"]
    return _checksum(_json({"system": bundle.manifest.system, "inputs": inputs, "encoders": encoders}))


class Folder:
    """A folder that keeps the dialogues of one model."""

    def __init__(self, root: Path, bundle: Bundle, clock: Callable[[], float] = time.time):
        """Makes the folder where it is missing; raises UsageError where that cannot be."""
        self.root, self._clock, self._looked = root, clock, float("-inf")
        self.model = model_key(bundle)
        self._names: WeakKeyDictionary[Utterance, str] = WeakKeyDictionary()
        """Checksums of the arrays of utterances that are stored."""
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{root} cannot hold live dialogues: {error.strerror or error}") from None

    def load(self, dialogue: str) -> Heard | None:
        """What was heard of a dialogue; None of a new one.

        Raises:
            InputError: a file is damaged, or the dialogue was kept for a model with other features.
        """
        folder = self._folder(dialogue)
        if not (folder / INDEX).is_file():
            return None
        said = read_json_object(folder / INDEX)
        checksum = said.pop("sha256", None)
        if checksum != _checksum(_json(said)) or said.get("version") != VERSION:
            raise InputError(f"{folder / INDEX} is damaged or of another version: end the dialogue to begin it anew")
        if said["model"] != self.model or said["dialogue"] != dialogue:
            raise InputError(f"dialogue {dialogue!r} was kept for another model: end it to begin it anew")
        utterances = tuple(_utterance(folder, own) for own in said["utterances"])
        self._names.update(zip(utterances, (own["arrays"] for own in said["utterances"]), strict=True))
        return Heard(dialogue, utterances, said["said"], tuple(said["gone"]))

    def save(self, heard: Heard) -> None:
        """Stores a turn: what is new of it, and away with what is not kept any more."""
        folder = self._folder(heard.id)
        folder.mkdir(exist_ok=True)
        there, told = {path.name for path in folder.glob("*.npz")}, []
        for utterance in heard.utterances:
            name = self._names.get(utterance)
            # What was stored is gone where the dialogue was over meanwhile.
            if name is None or f"{name}.npz" not in there:
                content = _content(utterance)
                name = self._names[utterance] = _checksum(content)
                write_atomic(folder / f"{name}.npz", content)
            told.append(_said(utterance) | {"arrays": name})
        said = {"version": VERSION, "model": self.model, "dialogue": heard.id, "said": heard.said}
        said |= {"gone": list(heard.gone), "utterances": told}
        write_atomic(folder / INDEX, _json(said | {"sha256": _checksum(_json(said))}))
        for gone in there - {f"{own['arrays']}.npz" for own in told}:
            (folder / gone).unlink(missing_ok=True)

    def mark(self, dialogue: str) -> Any:
        """What differs once anybody stored a turn; None where nothing is stored."""
        return states([self._folder(dialogue) / INDEX])[0]

    def remove(self, dialogue: str) -> bool:
        """Forgets a dialogue; whether there was one."""
        folder = self._folder(dialogue)
        there = folder.is_dir()
        shutil.rmtree(folder, ignore_errors=True)
        return there

    def expire(self, idle: float) -> None:
        """Forgets dialogues whose last turn was that many seconds ago."""
        now = self._clock()
        if now - self._looked < min(LOOK, idle):
            return
        self._looked = now
        for index in self.root.glob(f"*/{INDEX}"):
            # Another thread may end it meanwhile.
            with suppress(FileNotFoundError):
                if index.stat().st_mtime < now - idle:
                    shutil.rmtree(index.parent, ignore_errors=True)

    def _folder(self, dialogue: str) -> Path:
        return self.root / _checksum(dialogue.encode("utf-8", "surrogatepass"))[:32]


def _said(utterance: Utterance) -> dict[str, Any]:
    return {
        "id": utterance.id,
        "speaker": utterance.speaker,
        "sentence": utterance.sentence,
        "sources": {modality: len(own) for modality, own in utterance.features.items()},
    }


def _content(utterance: Utterance) -> bytes:
    """The arrays of an utterance as the bytes of an npz file."""
    arrays = {f"inputs/{n}": a for n, a in utterance.inputs.items()}
    arrays |= {f"features/{n}/{i}": a for n, own in utterance.features.items() for i, a in enumerate(own)}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _utterance(folder: Path, said: Mapping[str, Any]) -> Utterance:
    path = folder / f"{said['arrays']}.npz"
    if not path.is_file() or file_sha256(path) != said["arrays"]:
        raise InputError(f"{path} is missing or damaged: end the dialogue to begin it anew")
    arrays = load_arrays(path)
    features = {n: tuple(arrays[f"features/{n}/{i}"] for i in range(size)) for n, size in said["sources"].items()}
    inputs = {n.removeprefix("inputs/"): a for n, a in arrays.items() if n.startswith("inputs/")}
    return Utterance(said["id"], said["speaker"], sentence=said["sentence"], features=features, inputs=inputs)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, sort_keys=True).encode()


def _checksum(content: bytes) -> str:
    return sha256(content).hexdigest()
