"""The IEMOCAP release: dialogues, their emotions, transcripts and recordings, cut into utterances.

SessionN/dialog/EmoEvaluation/<dialogue>.txt, SessionN/dialog/transcriptions/<dialogue>.txt,
SessionN/dialog/wav/<dialogue>.wav
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_export.errors import InputError

LABELS = ("ang", "hap", "exc", "sad", "neu")
"""Emotions that are kept; the position is the id in label files."""
CLASSES = (0, 1, 1, 2, 3)
"""Class of each id: happy and excited are one."""
SESSIONS = (1, 2, 3, 4, 5)
TIMES = re.compile(r"\[(\d+(?:\.\d+)?) - (\d+(?:\.\d+)?)\]")
LABEL = re.compile(r"(.{3})\t\[[^\[]*\Z")
TURN = 4
"""Characters of a turn's name behind the dialogue's."""


@dataclass(frozen=True)
class Utterance:
    """One kept utterance. `start` and `end` are seconds in the dialogue's recording."""

    index: int
    dialogue: str
    turn: str
    session: int
    label: str
    start: float
    end: float
    text: str

    @property
    def name(self) -> str:
        """Its file name in the authors' form, without ending."""
        return f"{self.index}_{self.turn[0]}_s_{self.session}_{self.label}"

    @property
    def label_id(self) -> int:
        """Id in label files."""
        return LABELS.index(self.label)

    def samples(self, recording: np.ndarray, rate: int) -> np.ndarray:
        """Its part of the left channel of the dialogue, whoever speaks."""
        return recording[int(self.start * rate) : int(self.end * rate), 0]


def parse_dialogue(
    dialogue: str, session: int, evaluation: str, transcript: str, first_index: int = 0
) -> list[Utterance]:
    """The kept utterances of one dialogue, counted from `first_index` on.

    Args:
        dialogue: its name.
        session: number of the session.
        evaluation: content of its EmoEvaluation file.
        transcript: content of its transcription file.
        first_index: number of the first kept utterance.

    Raises:
        InputError: a block or line of another form, or an utterance without a transcript.
    """
    sentences = dict(_sentences(transcript))
    found: list[Utterance] = []
    # The original counts empty lines, so a file that does not end in one loses its last utterance.
    lines = evaluation.split("\n")
    blocks = evaluation.split("\n\n")[1:][: max(0, lines.count("") - 2)]
    for block in blocks:
        header = block.strip("\n").split("\n")[0]
        times, label, at = TIMES.search(header), LABEL.search(header), header.find(f"{dialogue}_")
        if times is None or label is None or at < 0:
            raise InputError(f"{dialogue}: {header!r} is not the header of an utterance")
        if label[1] not in LABELS:
            continue
        turn = header[at + len(dialogue) + 1 :][:TURN]
        if f"{dialogue}_{turn}" not in sentences:
            raise InputError(f"{dialogue}: there is no transcript of {turn}")
        text = sentences[f"{dialogue}_{turn}"].lower()
        start, end = float(times[1]), float(times[2])
        found.append(Utterance(first_index + len(found), dialogue, turn, session, label[1], start, end, text))
    return found


def read_release(root: Path) -> Iterator[tuple[Utterance, Path]]:
    """Kept utterances of all sessions in order, each with the recording of its dialogue.

    Dialogues come in alphabetical order; the original takes them as the file system lists them.

    Raises:
        InputError: no such release, or a file of it is missing or damaged.
    """
    count = 0
    for session in SESSIONS:
        folder = root / f"Session{session}" / "dialog"
        files = sorted(p for p in (folder / "EmoEvaluation").glob("*.txt") if not p.name.startswith("."))
        if not files:
            raise InputError(f"{folder} has no EmoEvaluation files: give the folder with Session1 to Session5")
        for file in files:
            transcript = _text(folder / "transcriptions" / file.name)
            for utterance in parse_dialogue(file.stem, session, _text(file), transcript, count):
                count += 1
                yield utterance, folder / "wav" / f"{file.stem}.wav"


def _sentences(transcript: str) -> Iterator[tuple[str, str]]:
    for line in transcript.splitlines():
        name, bracket, _ = line.partition(" [")
        _, colon, sentence = line.partition(": ")
        # Lines of breaths and laughter have no times, and nothing asks for them.
        if bracket and colon:
            yield name, sentence


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
