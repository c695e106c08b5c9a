"""The sentences of a data set through the encoders of text: each distinct one once."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from mer_export.encoders.reading import features_of
from mer_export.errors import InputError
from mer_export.untrusted.cells import Cells
from runtimes.encode import Encoding

GROUP = 64
"""Sentences that are encoded together: the same ones, however often a run was cut."""
MOST_BYTES = 1 << 28
"""Features that are kept for sentences that come again."""
Answer = list[np.ndarray] | InputError
"""The features (steps, width) of a sentence by each encoder, or why there are none."""


class Distinct:
    """The sentences of a data set, each once, numbered as they come, in little more room than their characters."""

    def __init__(self) -> None:
        self.texts = Cells()
        # By the hash of each its number from 1 on; 0 where there is none.
        self._slots = array("I", bytes(4 * 64))

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str) -> None:
        """A sentence, which may be there."""
        place = self._place(text)
        if self._slots[place]:
            return
        self.texts.extend([text])
        self._slots[place] = len(self.texts)
        if 3 * len(self.texts) > 2 * len(self._slots):
            self._slots = array("I", bytes(8 * len(self._slots)))
            for number, own in enumerate(self.texts, start=1):
                self._slots[self._place(own)] = number

    def number(self, text: str) -> int:
        """That of a sentence; raises KeyError where it is not there."""
        number = self._slots[self._place(text)]
        if not number:
            raise KeyError(text)
        return number - 1

    def _place(self, text: str) -> int:
        last = len(self._slots) - 1
        place = hash(text) & last
        while self._slots[place] and self.texts[self._slots[place] - 1] != text:
            place = (place + 1) & last
        return place


class Sentences:
    """Features of sentences, by group; groups that were asked for long ago are encoded again."""

    def __init__(self, known: Distinct, encodings: Sequence[Encoding]):
        self.known, self.encodings = known, encodings
        self.groups: OrderedDict[int, list[Answer]] = OrderedDict()

    def __call__(self, sentence: str) -> list[np.ndarray]:
        """The features of one of them by each encoder; raises InputError where it cannot be read."""
        group, place = divmod(self.known.number(sentence), GROUP)
        if group not in self.groups:
            self.groups[group] = self._encoded(self.known.texts[group * GROUP : (group + 1) * GROUP])
            while len(self.groups) > 1 and sum(map(_bytes, self.groups.values())) > MOST_BYTES:
                self.groups.popitem(last=False)
        self.groups.move_to_end(group)
        found = self.groups[group][place]
        if isinstance(found, InputError):
            raise found
        return found

    def _encoded(self, texts: Sequence[str]) -> list[Answer]:
        answers: list[Answer] = [[] for _ in texts]
        for encoding in self.encodings:
            prepared = []
            for place, text in enumerate(texts):
                try:
                    prepared.append((place, encoding.prepare(text, str(place))))
                except InputError as error:
                    answers[place] = error
            for (place, _), found in zip(prepared, encoding.finish(p for _, p in prepared), strict=True):
                answer = answers[place]
                if not isinstance(answer, InputError):
                    answer.append(features_of(encoding.encoder, [found]))
        return answers


def _bytes(group: Sequence[Answer]) -> int:
    return sum(a.nbytes for answer in group if not isinstance(answer, InputError) for a in answer)
