"""`mer infer --live`: an utterance a line comes in, its answer is a line that goes out at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mer_export.errors import InputError, UsageError
from mer_export.task import Task
from mer_export.untrusted.json_files import parse_json
from runtimes.live.dialogues import Dialogues
from runtimes.predict.live import Answer, Heard, Hearing, Turn
from runtimes.predict.output import json_row
from runtimes.predict.predictor import Predictor

DIALOGUE, BEFORE, CORRECTS, END, REVISE = "dialogue", "before", "corrects", "end", "revise"
ASIDE = frozenset((DIALOGUE, BEFORE, CORRECTS, END, REVISE))
"""What a line says beside the utterance."""


def turn_of(hearing: Hearing, heard: Heard, line: Mapping[str, Any]) -> Turn:
    """The turn that a line asks for: what is said next, `before` another unit, or what `corrects` one.

    Raises:
        InputError: an utterance that the model cannot take, or one that is both.
    """
    if (revise := line.get(REVISE)) is not None:
        if type(revise) is not int or revise < 0:
            raise InputError(f"revise is {revise!r}, it must be how many earlier answers are given anew")
        hearing = replace(hearing, revise=revise)
    spoken = {n: v for n, v in line.items() if n not in ASIDE}
    before, corrects = (None if line.get(n) is None else str(line[n]) for n in (BEFORE, CORRECTS))
    if corrects is None:
        return hearing.say(heard, spoken, before)
    if before is not None:
        raise InputError(
            f"dialogue {heard.id!r}: an utterance that corrects {corrects!r} stays where it is, leave before out"
        )
    return hearing.correct(heard, corrects, spoken)


def answer_row(dialogue: str, answer: Answer, task: Task) -> dict[str, Any]:
    """An answer as JSON lines and the server say it."""
    revised = [json_row(p, task) for p in answer.revised]
    return {DIALOGUE: dialogue, "prediction": json_row(answer.prediction, task), "revised": revised}


@dataclass
class Lines:
    """Answers lines with a predictor; counts what it answered and what it could not."""

    predictor: Predictor
    hearing: Hearing
    dialogues: Dialogues
    answered: int = 0
    refused: int = 0

    def answers(self, lines: Iterable[bytes]) -> Iterator[str]:
        """One line for each that is not empty, as soon as it is known; what cannot be answered says why."""
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield json.dumps(self._row(line, f"line {number}"), ensure_ascii=False)

    def _row(self, line: bytes, where: str) -> dict[str, Any]:
        said: dict[str, Any] = {}
        try:
            said = _object(line, where)
            row = self._answered(str(said[DIALOGUE]), said)
        except UsageError as error:
            self.refused += 1
            return {**({DIALOGUE: str(said[DIALOGUE])} if DIALOGUE in said else {}), "error": f"{where}: {error}"}
        self.answered += 1
        return row

    def _answered(self, dialogue: str, line: Mapping[str, Any]) -> dict[str, Any]:
        if line.get(END):
            self.dialogues.end(dialogue)
            return {DIALOGUE: dialogue, END: True}
        turn = turn_of(self.hearing, self.dialogues.heard(dialogue), line)
        answer = self.predictor.answer(turn)
        self.dialogues.keep(turn.after)
        return answer_row(dialogue, answer, self.predictor.task)

    def run(self, lines: Iterable[bytes], show: Callable[[str], None]) -> dict[str, int]:
        """Answers all lines; raises InputError at the end where some could not be answered."""
        for answer in self.answers(lines):
            show(answer)
        if self.refused:
            raise InputError(f"{self.refused} of {self.refused + self.answered} lines were not answered, each says why")
        return {"answered": self.answered, "dialogues": len(self.dialogues)}


def _object(line: bytes, where: str) -> dict[str, Any]:
    found = parse_json(line, "it")
    if not isinstance(found, dict) or found.get(DIALOGUE) is None:
        raise InputError('it is no utterance: write {"dialogue": "c17", "speaker": "Ann", ...}')
    return found
