"""The sentences of a data set through the encoders of text: each distinct one once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from mer_export.encoders.reading import features_of
from mer_export.errors import InputError
from runtimes.encode import Encoding

GROUP = 64
"""Sentences that are encoded together: the same ones, however often a run was cut."""
MOST_BYTES = 1 << 28
"""Features that are kept for sentences that come again."""
Answer = list[np.ndarray] | InputError
"""The features (steps, width) of a sentence by each encoder, or why there are none."""


class Sentences:
    """Features of sentences, by group; groups that were asked for long ago are encoded again."""

    def __init__(self, numbers: Mapping[str, int], encodings: Sequence[Encoding]):
        self.numbers, self.encodings = numbers, encodings
        self.texts = list(numbers)
        self.groups: OrderedDict[int, list[Answer]] = OrderedDict()

    def __call__(self, sentence: str) -> list[np.ndarray]:
        """The features of one of them by each encoder; raises InputError where it cannot be read."""
        group, place = divmod(self.numbers[sentence], GROUP)
        if group not in self.groups:
            self.groups[group] = self._encoded(self.texts[group * GROUP : (group + 1) * GROUP])
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
