"""From the body of a request to samples: the one place that knows what people send.

Dialogues come as the lines that `mer infer` reads, with recordings inside where the bundle has encoders of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mer_export.data.bundle_data import line_spec, refuse_other_extractors
from mer_export.data.dialogues import MODALITIES, READY, distinct
from mer_export.data.formats.jsonl.reader import HEADER, DialogueReader, declared, is_dialogue
from mer_export.data.given import checked
from mer_export.data.labels import LabelReader
from mer_export.data.open import Through
from mer_export.data.samples import Sample
from mer_export.data.shapes.shape import find_shape
from mer_export.errors import InputError
from mer_export.untrusted.json_files import parse_json
from runtimes.predict.predictor import Predictor
from runtimes.serve.recordings import FORM, Clip, Parts, Place, clips_in
from runtimes.serve.refusals import Refusal, malformed

JSON, LINES = "application/json", "application/x-ndjson"
KINDS = {JSON: JSON, LINES: LINES, "application/jsonl": LINES, "application/jsonlines": LINES, FORM: FORM}
"""Content types of dialogues, and what they are."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for: dialogues, each with what messages call it, and what they say of all of them."""

    dialogues: Sequence[tuple[str, Mapping[str, Any]]]
    about: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    clips: Mapping[Place, Clip] = field(default_factory=dict)

    @property
    def clip_bytes(self) -> int:
        """Of all recordings, a part that several utterances name as often as they do."""
        return sum(len(c.content) for c in self.clips.values())


def kind_of(content_type: str, takes: Collection[str]) -> str:
    """Which form a body has; raises Refusal (415) for one that a model that `takes` these recordings does not take."""
    kind = KINDS.get(content_type.partition(";")[0].strip().lower())
    if kind is None or (kind == FORM and not takes):
        media = content_type.lower().startswith(("multipart/", "audio/", "image/", "video/")) and not takes
        why = "this model takes features and sentences, no recordings" if media else f"the body is {content_type!r}"
        raise Refusal(415, f"{why}: send {JSON} or {LINES}" + (f", recordings as {FORM}" if takes else ""))
    return kind


def parse(body: bytes, kind: str, parts: Parts | None = None) -> Asked:
    """What a body says; `parts` are the recordings that stand beside it.

    Raises:
        Refusal: 400, it is not JSON, or holds no dialogues, or a recording is not said as it should be.
    """
    asked = _lines(body) if kind == LINES else _object(_json(body, "the body"))
    return replace(asked, clips=clips_in(asked.dialogues, parts or {}))


def require_json(content_type: str) -> None:
    """Raises Refusal (415) for a body that does not say that it is JSON."""
    if content_type.partition(";")[0].strip().lower() != JSON:
        raise Refusal(415, f"the body is {content_type!r}: send {JSON}")


def spoken(body: bytes) -> Mapping[str, Any]:
    """An utterance of a live dialogue; raises Refusal (400) for a body that is no JSON object."""
    return _json(body, "the body")


def _json(text: bytes, name: str) -> Mapping[str, Any]:
    try:
        found = parse_json(text, name)
    except InputError as error:
        raise malformed(str(error)) from None
    if not isinstance(found, dict):
        raise malformed(f"{name} is a {type(found).__name__}, expected an object")
    return found


def _object(body: Mapping[str, Any]) -> Asked:
    """One dialogue, or several under `dialogues`; beside them what the first line of a file may say, and `stream`."""
    several = body.get("dialogues", [body])
    if not isinstance(several, list) or not all(isinstance(d, dict) for d in several):
        raise malformed("dialogues must be a list of objects")
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise malformed(f"stream is {stream!r}, it must be true or false")
    about = declared({n: body[n] for n in HEADER if n in body}, "the body")
    return _named([(f"dialogue {i}", d) for i, d in enumerate(several)], about, stream)


def _lines(body: bytes) -> Asked:
    """A file of `mer infer`: a dialogue each line, and maybe a first one that says what they are."""
    texts = [(f"line {i}", t) for i, t in enumerate(body.split(b"\n"), start=1) if t.strip()]
    lines = [(where, _json(text, where)) for where, text in texts]
    if lines and not is_dialogue(lines[0][1]):
        return _named(lines[1:], declared(lines[0][1], lines[0][0]), stream=True)
    return _named(lines, {}, stream=True)


def _named(dialogues: Sequence[tuple[str, Mapping[str, Any]]], about: Mapping[str, Any], stream: bool) -> Asked:
    """A dialogue without a name is called by its number."""
    if not dialogues:
        raise malformed("there is no dialogue in the body")
    return Asked([(where, {"dialogue": str(i), **d}) for i, (where, d) in enumerate(dialogues)], about, stream)


class Reader:
    """Makes samples of what is asked, as the bundle reads data, for one state of it."""

    def __init__(self, predictor: Predictor, encodes_sentences: bool = False):
        """`encodes_sentences`: whether an encoder of the bundle reads them."""
        self.bundle, self.contract = predictor.bundle, predictor.contract
        self._encoded = encodes_sentences
        self.labels = predictor.task.labels
        self.spec = line_spec(predictor.bundle)

    def samples(self, asked: Asked, through: Through = iter) -> list[Sample]:
        """One sample for each dialogue, or for each utterance, as the model takes them.

        Args:
            asked: what a request asks for.
            through: what dialogues pass on their way, such as encoders.

        Raises:
            InputError: a dialogue that the model cannot take, or that names files.
        """
        spec = self.spec.over(asked.about, "the body")
        refuse_other_extractors(self.bundle, spec.extractors, "the body")
        reader, shape = DialogueReader(spec, reach=None), find_shape(spec.shape)
        dialogues = (reader.dialogue(given, where) for where, given in asked.dialogues)
        labels = LabelReader("the body", self.labels, spec.label_columns or spec.label_names)
        apart = distinct(dialogues, apart=spec.shape == "utterance")
        read = (s for d in through(apart) for s in shape(d, spec, labels))
        return list(checked(read, self.contract))

    @property
    def takes_sentences(self) -> bool:
        """Whether it makes what the model reads of what is said."""
        encoder = self.spec.context is not None and self.spec.context.encoder is not None
        return self.spec.tokenizer is not None or encoder or self._encoded

    def example(self, utterances: int = 3, seed: int = 0) -> dict[str, Any]:
        """A dialogue that the model takes: words where it reads some, else made-up features."""
        random = np.random.default_rng(seed)
        made = self._words if self.takes_sentences else self._features
        who = [{"id": f"u{n + 1}", "speaker": ("Ann", "Bob")[n % 2]} for n in range(utterances)]
        return {"dialogue": "example", "utterances": [own | made(n, random) for n, own in enumerate(who)]}

    def _words(self, number: int, random: np.random.Generator) -> dict[str, Any]:
        said = ("How was your day?", "Wonderful, I got the job!", "I am so happy for you.")
        return {"sentence": said[number % len(said)]}

    def _features(self, number: int, random: np.random.Generator) -> dict[str, Any]:
        made = {}
        for spec in self.contract.features:
            if spec.name in MODALITIES or spec.name in READY:
                dims = [d for d in spec.dims[1:] if d != "utterances"]
                shape = [self.contract.shortest.get(d, 2) if isinstance(d, str) else d for d in dims]
                drawn = random.normal(size=shape).round(1) if spec.dtype == "float32" else np.ones(shape, dtype=int)
                made[spec.name] = drawn.tolist()
        return made
