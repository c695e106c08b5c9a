"""Recordings inside a request: as base64 in JSON, or as parts of a form that the dialogue names."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from mer_export.install import install_hint
from runtimes.serve.refusals import Refusal, malformed

FORM = "multipart/form-data"
DIALOGUE = "dialogue"
"""The part of a form that is no recording: what a JSON body says."""
READ_BY: dict[str, frozenset[str]] = {"sound": frozenset({"sound"}), "video": frozenset({"sound", "picture"})}
"""What an utterance calls its recording, and the kinds of encoders one of which has to be there."""
PACKAGES: dict[str, tuple[str, ...]] = {"sound": ("soundfile", "soxr", "av"), "picture": ("av", "PIL")}
"""What reads files for encoders of each kind, by the name that it is imported by."""
Parts = Mapping[str, bytes]
Place = tuple[int, int]
"""The number of a dialogue in a request, and of an utterance in it."""


@dataclass(frozen=True)
class Clip:
    """A recording of one utterance: what it is called there, the bytes of the file, and its name in messages."""

    kind: str
    content: bytes
    where: str


def taken(kinds: Iterable[str]) -> list[str]:
    """What utterances may have where there are encoders of these kinds."""
    there = set(kinds)
    return [name for name, any_of in READ_BY.items() if there & any_of]


def unreadable(kinds: Iterable[str]) -> str | None:
    """Why encoders of these kinds read no files here, or not all; None where they do."""
    wanted = dict.fromkeys(p for kind in sorted(kinds) for p in PACKAGES.get(kind, ()))
    missing = [p for p in wanted if find_spec(p) is None]
    if not missing:
        return None
    return f"recordings that {' or '.join(missing)} reads get 501, which is not installed: {install_hint('media')}"


def require_taken(clips: Iterable[Clip], takes: Collection[str]) -> None:
    """Raises Refusal (415) for a recording that no encoder reads."""
    for clip in clips:
        if clip.kind not in takes:
            raise Refusal(415, f"{clip.where}: no encoder of this model reads it: add one with mer attach")


def clips_in(dialogues: Sequence[tuple[str, Mapping[str, Any]]], parts: Parts) -> dict[Place, Clip]:
    """The recordings of all utterances.

    Raises:
        Refusal: 400, one is not said as it should be, or a part is missing or nobody's.
    """
    found: dict[Place, Clip] = {}
    named: set[str] = set()
    for number, (where, dialogue) in enumerate(dialogues):
        for place, utterance in enumerate(_utterances(dialogue)):
            given = {n: utterance[n] for n in READ_BY if utterance.get(n) is not None}
            if len(given) > 1:
                raise malformed(f"{where}: utterance {place} has {list(given)}: send the video alone")
            for kind, said in given.items():
                clip = _clip(kind, said, f"the {kind} of utterance {place} of {where}", parts)
                named |= {said["part"]} if "part" in said else set()
                found[number, place] = clip
    if idle := sorted(parts.keys() - named):
        raise malformed(f'no utterance names the part {idle[0]!r}: write "sound": {{"part": {json.dumps(idle[0])}}}')
    return found


def _utterances(dialogue: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """What is none is refused where dialogues are read."""
    given = dialogue.get("utterances")
    return given if isinstance(given, list) and all(isinstance(u, dict) for u in given) else ()


def _clip(kind: str, said: Any, where: str, parts: Parts) -> Clip:
    match said:
        case {"data": str(text)} if len(said) == 1:
            return Clip(kind, _decoded(text, where), where)
        case {"part": str(name)} if len(said) == 1:
            if name not in parts:
                raise malformed(f"{where} is the part {name!r}, there are {list(parts)}")
            return Clip(kind, parts[name], where)
    raise malformed(f'{where} must be {{"data": BASE64}}, or in a form {{"part": NAME}}')


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise malformed(f"{where} is not base64: send it in the standard alphabet, without line ends") from None


async def opened(body: bytes, content_type: str) -> tuple[bytes, Parts]:
    """The dialogue of a form, and its recordings by name; a recording alone is an utterance.

    Raises:
        Refusal: 400, it is no form, or holds anything else.
    """
    headers = Headers({"content-type": content_type})
    try:
        form = await _InMemory(headers, _once(body), max_part_size=len(body)).parse()
    except MultiPartException as error:
        raise malformed(f"the body is not {FORM}: {error.message.rstrip('.')}") from None
    parts: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if name in parts:
            raise malformed(f"two parts are called {name!r}: give each its own name")
        if name != DIALOGUE and not isinstance(value, UploadFile):
            raise malformed(f"the part {name!r} is not a file: send files, and what is said of them as {DIALOGUE!r}")
        parts[name] = await value.read() if isinstance(value, UploadFile) else value.encode("utf-8", "surrogatepass")
    dialogue = parts.pop(DIALOGUE, None)
    if dialogue is None and len(parts) != 1:
        raise malformed(f"the form has {len(parts)} files and no part {DIALOGUE!r}: say there whose they are")
    if dialogue is None:
        dialogue = json.dumps({"utterances": [{"video": {"part": next(iter(parts))}}]}).encode()
    return dialogue, parts


class _InMemory(MultiPartParser):
    """Files of a body that is in memory already go nowhere else."""

    spool_max_size = 1 << 62


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
