"""A dialogue that goes on: every utterance is answered when it is said, with what was said before.

What was heard is a value, `Heard`; a `Turn` says which samples an utterance asks to be answered, and what is heard
then. Who has them answered, and how many dialogues are kept, is for others: `Live`, `runtimes.live` or a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from sys import getsizeof
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np

from mer_export.bundle import Bundle
from mer_export.data.bundle_data import line_spec
from mer_export.data.dialogues import ALL, Dialogue, Utterance
from mer_export.data.formats.jsonl.reader import DialogueReader
from mer_export.data.labels import LabelReader
from mer_export.data.open import Through
from mer_export.data.samples import Sample
from mer_export.data.shapes.packed import TEXT as PACKED
from mer_export.data.shapes.shape import find_shape
from mer_export.data.spec import DataSpec, Shape
from mer_export.encoders.running import sentence_vectors
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.places import Reach
from runtimes.predict.prediction import Prediction

TARGETS = frozenset(("label", "score", "labels"))
"""What an utterance of labelled data may say beside itself, and a live one need not."""
UTTERANCE_BYTES = 512
"""About what an utterance takes beside its arrays and texts."""
Spoken = Utterance | Mapping[str, Any]
"""An utterance as a line of JSON has it, or as it is read from one."""


@dataclass(frozen=True, eq=False)
class Heard:
    """What was said of a dialogue so far.

    `utterances` are those that are kept, in speaking order, with the features that encoders made of them; `said` counts
    all that ever were, `gone` are the speakers of those that left the window, in the order of their first words.
    """

    id: str
    utterances: tuple[Utterance, ...] = ()
    said: int = 0
    gone: tuple[str, ...] = ()

    def place(self, unit: str) -> int:
        """Where an utterance stands; raises InputError for one that is not kept."""
        for place, utterance in enumerate(self.utterances):
            if utterance.id == unit:
                return place
        raise InputError(
            f"dialogue {self.id!r} has no utterance {unit!r}: it was never said, or has left the window; kept are "
            f"{[u.id for u in self.utterances[-3:]]} and those before them"
        )

    @property
    def nbytes(self) -> int:
        """Of what it keeps: features, words and names, and what else an utterance takes."""
        arrays = (a for u in self.utterances for own in (*u.features.values(), u.inputs.values()) for a in own)
        said = (t for u in self.utterances for t in (u.id, u.speaker, u.sentence) if isinstance(t, str))
        texts = sum(map(getsizeof, (*said, *self.gone)))
        return sum(a.nbytes for a in arrays) + texts + UTTERANCE_BYTES * len(self.utterances)


@dataclass(frozen=True, eq=False)
class Turn:
    """What one utterance asks for: samples to answer, the units whose answers are wanted, and what is heard then.

    `spoken` are samples of the utterance alone, by which its features are judged.
    """

    unit: str
    samples: Sequence[Sample]
    spoken: Sequence[Sample]
    wanted: frozenset[str]
    after: Heard

    def answer(self, predictions: Iterable[Prediction]) -> Answer:
        """What the predictions of the samples say of the units that are wanted."""
        found = {p.unit: p for p in predictions if p.unit in self.wanted}
        return Answer(found.pop(self.unit), tuple(found.values()))


@dataclass(frozen=True)
class Answer:
    """What comes of an utterance: the prediction of it, and new ones of others in whose context it stands."""

    prediction: Prediction
    revised: tuple[Prediction, ...] = ()


def _context(spec: DataSpec, utterances: Sequence[Utterance]) -> int | None:
    return spec.context.size if spec.context else 0


def _packed(spec: DataSpec, utterances: Sequence[Utterance]) -> int | None:
    """A text is packed of sentences; tokens that are ready are those of their utterance."""
    ready = any(u.inputs.keys() & PACKED for u in utterances)
    return None if not ready and any(u.sentence is not None for u in utterances) else 0


LOOKS: dict[Shape, Callable[[DataSpec, Sequence[Utterance]], int | None]] = {
    "dialogue": lambda spec, utterances: None,
    "utterance": lambda spec, utterances: 0,
    "context": _context,
    "packed": _packed,
}
"""How many neighbours on each side an answer depends on; None: on all of the dialogue."""


UNREAD = DataSpec()
"""Stands for the data section of a bundle until it is read."""


@dataclass(frozen=True)
class Hearing:
    """How a bundle takes utterances that come one at a time.

    Attributes:
        bundle: whose data section says what samples are made of them.
        labels: the classes of its task.
        window: the last utterances alone are kept, and answered as if they were the dialogue.
        revise: of how many others an utterance that changes their context asks for a new answer, the last ones; None is
            all.
        reach: where paths may lead that utterances name; None refuses all of them.
        through: what each utterance passes once, such as encoders.
        spec: the data section of the bundle, read from it; as many speakers are told apart as the model knows.
    """

    bundle: Bundle
    labels: Sequence[str]
    window: int | None = None
    revise: int | None = None
    reach: Reach | None = None
    through: Through | None = None
    spec: DataSpec = field(default_factory=lambda: UNREAD)

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise UsageError(f"--window must be 1 or more, not {self.window}")
        if self.revise is not None and self.revise < 0:
            raise UsageError(f"--revise must be 0 or more, not {self.revise}")
        if self.spec is UNREAD:
            object.__setattr__(self, "spec", line_spec(self.bundle))

    def say(self, heard: Heard, spoken: Spoken, before: str | None = None) -> Turn:
        """The next utterance, or one that came too late and stands before another one.

        Raises:
            InputError: it is none, says the id of another one, or the window begins after it.
        """
        utterance = self._utterance(heard, spoken, f"{heard.id}/{heard.said}")
        if any(u.id == utterance.id for u in heard.utterances):
            raise InputError(f"dialogue {heard.id!r} has an utterance {utterance.id!r}: correct it, or give another id")
        place = len(heard.utterances) if before is None else heard.place(before)
        whole = [*heard.utterances[:place], utterance, *heard.utterances[place:]]
        left = 0 if self.window is None else max(len(whole) - self.window, 0)
        if place < left:
            raise InputError(
                f"dialogue {heard.id!r} keeps {self.window} utterances, all of them after {utterance.id!r}"
            )
        gone = dict.fromkeys([*heard.gone, *(str(u.speaker) for u in whole[:left])])
        return self._turn(Heard(heard.id, tuple(whole[left:]), heard.said + 1, tuple(gone)), place - left)

    def correct(self, heard: Heard, unit: str, spoken: Spoken) -> Turn:
        """Another reading of an utterance that was said; raises InputError as `say`, and for one that is not kept."""
        place = heard.place(unit)
        utterance = replace(self._utterance(heard, spoken, unit), id=unit)
        kept = (*heard.utterances[:place], utterance, *heard.utterances[place + 1 :])
        return self._turn(replace(heard, utterances=kept), place)

    def _utterance(self, heard: Heard, spoken: Spoken, name: str) -> Utterance:
        """An utterance with all that is made of it alone."""
        where = f"dialogue {heard.id!r}"
        if isinstance(spoken, Utterance):
            utterance = spoken
        else:
            given = {n: v for n, v in spoken.items() if n not in TARGETS}
            utterance = DialogueReader(self.spec, self.reach).utterance(given, name, where)
        if self.through is not None:
            alone = Dialogue(heard.id, ALL, [utterance], where)
            utterance = next(iter(self.through([alone]))).utterances[0]
        utterance = replace(utterance, label=None, score=None, indicators=None)
        if self.spec.shape == "context":
            utterance = self._with_tokens(utterance, where)
        inputs = {n: np.asarray(a) for n, a in utterance.inputs.items()}
        return replace(utterance, inputs=inputs, recording=None)

    def _with_tokens(self, utterance: Utterance, where: str) -> Utterance:
        """With the tokens and the sentence vector that its shape would make of it in every window anew."""
        (sample,) = self._samples(Dialogue(where, ALL, [replace(utterance, features={})], where))
        made = {n: a for n, a in sample.inputs.items() if n.endswith("_tokens")}
        encoder, features = self.spec.context and self.spec.context.encoder, dict(utterance.features)
        if encoder and utterance.sentence and "text" not in features:
            features["text"] = (sentence_vectors(encoder, [utterance.sentence]),)
        return replace(utterance, features=features, inputs={**made, **utterance.inputs})

    def _turn(self, after: Heard, place: int) -> Turn:
        looks = LOOKS[self.spec.shape](self.spec, after.utterances)
        if looks is None:
            # A causal model's earlier answers stay.
            earliest = place if self.bundle.manifest.config.get("causal") else 0
            first, near, touched = 0, after.utterances, range(earliest, len(after.utterances))
        else:
            first = max(place - 2 * looks, 0)
            near = after.utterances[first : place + 2 * looks + 1]
            touched = range(max(place - looks, 0), min(place + looks + 1, len(after.utterances)))
        own, where = after.utterances[place], f"dialogue {after.id!r}"
        # First: of a wrong width the whole dialogue would only say that its utterances differ.
        spoken = [self._fits(s) for s in self._samples(Dialogue(after.id, ALL, [own], where))]
        unit = own.id
        others = [after.utterances[i].id for i in touched if i != place]
        kept = others if self.revise is None else others[max(len(others) - self.revise, 0) :]
        wanted = frozenset((unit, *kept))
        whole = self._as_one_context(self._with_speakers(near, after.gone))
        samples = [s for s in self._samples(Dialogue(after.id, ALL, whole, where)) if not wanted.isdisjoint(s.units)]
        return Turn(unit, samples, spoken, wanted, after)

    def _fits(self, sample: Sample) -> Sample:
        """A sample whose inputs are as wide as the model's; raises InputError for another one."""
        for spec in self.bundle.manifest.contract.features:
            wanted, found = spec.dims[1:], getattr(sample.inputs.get(spec.name), "shape", ())
            sizes = [(n, d) for n, d in zip(found, wanted, strict=False) if isinstance(d, int) and (n, d) != (1, 1)]
            if len(found) == len(wanted) and any(n != d for n, d in sizes):
                given, taken = (" x ".join(map(str, side)) for side in zip(*sizes, strict=True))
                raise InputError(f"{sample.units[0]}: {spec.name} is {given}, the model takes {taken}")
        return sample

    def _samples(self, dialogue: Dialogue) -> Iterator[Sample]:
        names = self.spec.label_columns or self.spec.label_names
        return find_shape(self.spec.shape)(dialogue, self.spec, LabelReader(dialogue.where, self.labels, names))

    def _with_speakers(self, utterances: Sequence[Utterance], gone: Sequence[str]) -> Sequence[Utterance]:
        """Speakers by name keep the number that they had before the first of them left the window."""
        if not gone or all(isinstance(u.speaker, int) for u in utterances):
            return utterances
        names = {n: i for i, n in enumerate(dict.fromkeys([*gone, *(str(u.speaker) for u in utterances)]))}
        known = self.spec.told_apart or len(names)
        return [replace(u, speaker=min(names[str(u.speaker)], known - 1)) for u in utterances]

    def _as_one_context(self, utterances: Sequence[Utterance]) -> Sequence[Utterance]:
        """A context is made where every utterance has a sentence vector, as in a dialogue that is read whole."""
        if self.spec.shape != "context" or all("text" in u.features for u in utterances):
            return utterances
        return [replace(u, features={n: a for n, a in u.features.items() if n != "text"}) for u in utterances]


class Live:
    """One live dialogue: `say` and `correct` answer at once. Used as a context manager, or dropped.

    It may be called from any thread, one utterance at a time. What cannot be answered changes nothing.
    """

    def __init__(self, hearing: Hearing, answer: Callable[[Turn], Answer], heard: Heard) -> None:
        self.hearing, self.heard = hearing, heard
        self._answer, self._turns = answer, Lock()

    def say(self, utterance: Spoken, before: str | None = None) -> Answer:
        """The answer to the next utterance, or to one that came late and belongs before another one (its unit).

        Args:
            utterance: a dict as docs/data.md says of JSON lines: `speaker`, `sentence`, features, `id`.
            before: the unit before which it was spoken; None is after all of them.

        Raises:
            InputError: an utterance that the model cannot take.
        """
        with self._turns:
            return self._answered(self.hearing.say(self.heard, utterance, before))

    def correct(self, unit: str, utterance: Spoken) -> Answer:
        """The answer to another reading of an utterance that was said before; raises InputError as `say`."""
        with self._turns:
            return self._answered(self.hearing.correct(self.heard, unit, utterance))

    @property
    def units(self) -> tuple[str, ...]:
        """The utterances that are kept, in speaking order."""
        return tuple(u.id for u in self.heard.utterances)

    def _answered(self, turn: Turn) -> Answer:
        answer = self._answer(turn)
        self.heard = turn.after
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.heard = Heard(self.heard.id)
