"""Splits of IEMOCAP by session and speaker, as tab is trained and tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mer_export.data.formats.tab.iemocap_release import SESSIONS
from mer_export.errors import UsageError

VALIDATION_SHARE = 0.1
RUNS = 2 * len(SESSIONS)
"""Runs of the cross-validation: each session held out twice, its speakers in both roles."""


@dataclass(frozen=True)
class Split:
    """Row numbers; those of `valid` may be in a drawn order."""

    train: list[int]
    valid: list[int]
    test: list[int]


def session_five(sessions: Sequence[int], seed: int = 2022, share: float = VALIDATION_SHARE) -> Split:
    """Session 5 tests; a drawn share of the rest validates (the original's main.py)."""
    rest = [i for i, s in enumerate(sessions) if s != SESSIONS[-1]]
    drawn = np.random.RandomState(seed).choice(len(rest), size=round(share * len(rest)), replace=False)
    valid = [rest[i] for i in drawn]
    chosen = set(valid)
    train = [i for i in rest if i not in chosen]
    return Split(train, valid, [i for i, s in enumerate(sessions) if s == SESSIONS[-1]])


def held_out_sessions(seed: int = 2022) -> list[int]:
    """The session that each fold holds out, in order."""
    order = np.arange(len(SESSIONS))
    np.random.RandomState(seed).shuffle(order)
    return [SESSIONS[i] for i in order]


def cross_validation(sessions: Sequence[int], speakers: Sequence[str], run: int, seed: int = 2022) -> Split:
    """Run 0-4: the female speaker of the held-out session validates and the male one tests; 5-9: the other way round.

    Raises:
        UsageError: no such run.
    """
    if not 0 <= run < RUNS:
        raise UsageError(f"fold {run} does not exist, there are 0 to {RUNS - 1}")
    held = held_out_sessions(seed)[run % len(SESSIONS)]
    validates, tests = ("F", "M") if run < len(SESSIONS) else ("M", "F")
    rows = list(enumerate(zip(sessions, speakers, strict=True)))
    return Split(
        train=[i for i, (s, _) in rows if s != held],
        valid=[i for i, (s, who) in rows if s == held and who == validates],
        test=[i for i, (s, who) in rows if s == held and who == tests],
    )
