"""`mer infer --live`: an utterance a line comes in, its answer is a line that goes out at once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import Queue
from threading import Thread
from typing import Any

from mer_export.data.dialogues import check_names
from mer_export.errors import InputError, UsageError
from mer_export.task import Task
from mer_export.untrusted.json_files import parse_json
from runtimes.live.dialogues import Dialogues
from runtimes.predict.live import Answer, Heard, Hearing, Turn
from runtimes.predict.output import json_row
from runtimes.predict.predictor import Predictor

DIALOGUE, BEFORE, CORRECTS, END, REVISE = "dialogue", "before", "corrects", "end", "revise"
ASIDE = frozenset((DIALOGUE, BEFORE, CORRECTS, REVISE))
"""What a line says beside the utterance; `end` is the utterance's, but for true with the dialogue alone."""


def turn_of(hearing: Hearing, heard: Heard, line: Mapping[str, Any]) -> Turn:
    """The turn that a line asks for: what is said next, `before` another unit, or what `corrects` one.

    Raises:
        InputError: an utterance that the model cannot take, one that is both, or one with the end of its dialogue.
    """
    end = line.get(END)
    if end is True or (END in line and line.keys() <= {DIALOGUE, END}):
        raise InputError(
            f"dialogue {heard.id!r}: end is {end!r}: write seconds where the part of a recording ends, or true with "
            "the dialogue alone (over HTTP DELETE) where that is over"
        )
    if (revise := line.get(REVISE)) is not None:
        if type(revise) is not int or revise < 0:
            raise InputError(f"revise is {revise!r}, it must be how many earlier answers are given anew")
        hearing = replace(hearing, revise=revise)
    spoken = {n: v for n, v in line.items() if n not in ASIDE and not (n == END and v is False)}
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
class _Line:
    """A line on its way: what it asks for, or the row that answers it already."""

    where: str
    dialogue: str | None
    turn: Turn | None = None
    row: dict[str, Any] | None = None


@dataclass
class Lines:
    """Answers lines with a predictor; counts what it answered and what it could not."""

    predictor: Predictor
    hearing: Hearing
    dialogues: Dialogues
    answered: int = 0
    refused: int = 0

    def answers(self, groups: Iterable[Sequence[bytes]]) -> Iterator[str]:
        """One line for each that is not empty, in order, as soon as it is known; what cannot be answered says why.

        `groups` are lines that wait together (`waiting`): those of different dialogues run in one batch.
        """
        numbers = itertools.count(1)
        for group in groups:
            for row in self._rows((f"line {next(numbers)}", line) for line in group):
                yield json.dumps(row, ensure_ascii=False)

    def _rows(self, group: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, Any]]:
        together: dict[str | None, _Line] = {}
        for where, line in group:
            if not line.strip():
                continue
            try:
                said = _object(line, where)
            except UsageError as error:
                yield from self._answered(together)
                yield self._problem(_Line(where, None), error)
                continue
            dialogue = str(said[DIALOGUE])
            # What a dialogue hears next depends on what becomes of its line before.
            if dialogue in together or _ends(said):
                yield from self._answered(together)
            together[dialogue] = self._begun(_Line(where, dialogue), said)
        yield from self._answered(together)

    def _begun(self, line: _Line, said: Mapping[str, Any]) -> _Line:
        dialogue = str(line.dialogue)
        try:
            if _ends(said):
                self.dialogues.end(dialogue)
                self.answered += 1
                return replace(line, row={DIALOGUE: dialogue, END: True})
            return replace(line, turn=turn_of(self.hearing, self.dialogues.heard(dialogue), said))
        except UsageError as error:
            return replace(line, row=self._problem(line, error))

    def _answered(self, together: dict[str | None, _Line]) -> Iterator[dict[str, Any]]:
        """The rows of lines that were begun, which are taken away."""
        lines = list(together.values())
        together.clear()
        answers = iter(self._together([line.turn for line in lines if line.turn]))
        for line in lines:
            yield line.row or self._kept(line, next(answers))

    def _together(self, turns: Sequence[Turn]) -> list[Answer | UsageError]:
        if not turns:
            return []
        try:
            return list(self.predictor.answer_together(turns))
        except UsageError as error:
            if len(turns) == 1:
                return [error]
            # One that cannot be answered takes none of its neighbours with it.
            return [found for turn in turns for found in self._together([turn])]

    def _kept(self, line: _Line, answer: Answer | UsageError) -> dict[str, Any]:
        assert line.turn is not None
        try:
            if isinstance(answer, UsageError):
                raise answer
            self.dialogues.keep(line.turn.after)
        except UsageError as error:
            return self._problem(line, error)
        self.answered += 1
        return answer_row(str(line.dialogue), answer, self.predictor.task)

    def _problem(self, line: _Line, error: UsageError) -> dict[str, Any]:
        self.refused += 1
        return {**({DIALOGUE: line.dialogue} if line.dialogue else {}), "error": f"{line.where}: {error}"}

    def run(self, lines: Iterable[bytes], show: Callable[[str], None]) -> dict[str, int]:
        """Answers all lines; raises InputError at the end where some could not be answered."""
        for answer in self.answers(waiting(lines, self.predictor.batch)):
            show(answer)
        if self.refused:
            raise InputError(f"{self.refused} of {self.refused + self.answered} lines were not answered, each says why")
        return {"answered": self.answered, "dialogues": len(self.dialogues)}


def waiting(lines: Iterable[bytes], most: int) -> Iterator[list[bytes]]:
    """Lines as they come: the next one, and with it those that are there already, up to `most`. None is waited for."""
    queue: Queue[bytes | BaseException | None] = Queue(most)

    def read() -> None:
        end: BaseException | None = None
        try:
            for line in lines:
                queue.put(line)
        except BaseException as error:
            end = error
        queue.put(end)

    Thread(target=read, name="mer-live-lines", daemon=True).start()
    while True:
        group: list[bytes] = []
        while not group or (len(group) < most and not queue.empty()):
            line = queue.get()
            if not isinstance(line, bytes):
                yield group
                if line is not None:
                    raise line
                return
            group.append(line)
        yield group


def _ends(said: Mapping[str, Any]) -> bool:
    """Whether a line says that its dialogue is over, and nothing else."""
    return said.get(END) is True and said.keys() <= {DIALOGUE, END}


def _object(line: bytes, where: str) -> dict[str, Any]:
    found = parse_json(line, "it")
    if not isinstance(found, dict) or found.get(DIALOGUE) is None:
        raise InputError('it is no utterance: write {"dialogue": "c17", "speaker": "Ann", ...}')
    check_names([str(found[DIALOGUE])], "its dialogue")
    return found
