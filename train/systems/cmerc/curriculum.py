"""CMERC's curriculum (section 6.6): the easiest dialogues first, a larger share of them every few epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mer_export.data.samples import Sample
from mer_export.errors import UsageError


def ratio(epoch: int, epoch_ratio: float, steps: int) -> float:
    """Share of the training dialogues used in `epoch` (from 0)."""
    return min(1, round(epoch_ratio * int(epoch / steps + 1), 2))


def easiest(difficulty: Mapping[str, float], share: float) -> set[str]:
    """Ids of the easiest `share` of the dialogues; ties keep the order of the difficulty file."""
    ascending = sorted(difficulty, key=lambda dialogue: difficulty[dialogue])
    return set(ascending[: int(share * len(ascending))])


def select(samples: Sequence[Sample], difficulty: Mapping[str, float], share: float) -> list[Sample]:
    """The easiest dialogues in their training order."""
    chosen = easiest(difficulty, share)
    return [s for s in samples if s.id in chosen]


def check(samples: Sequence[Sample], difficulty: Mapping[str, float]) -> None:
    """Raises UsageError where a difficulty belongs to no training dialogue, or a dialogue has none."""
    known = {s.id for s in samples}
    foreign = next((d for d in difficulty if d not in known), None)
    if foreign is not None:
        raise UsageError(f"difficulty of dialogue {foreign!r}: the training split has no such dialogue")
    missing = next((s.id for s in samples if s.id not in difficulty), None)
    if missing is not None:
        raise UsageError(f"dialogue {missing!r} has no difficulty: measure it with mer difficulty, or drop the file")
