"""How far metrics depend on which groups the data happen to hold: bootstrap, and permutation of two sets of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mer_export.metrics.tally import Tally

Draws = dict[str, np.ndarray]
"""Values (resamples,) of each metric."""
ELEMENTS = 1 << 21
"""Weights at a time: the bound on memory."""
ROUNDING = 1e-9
"""Differences that are equal but for the order of their sums, in points."""


def bootstrap(tallies: Sequence[Tally], rounds: int, seed: int = 0) -> list[Draws]:
    """The metrics of each tally where its groups are drawn with replacement, the same groups for all of them.

    Args:
        tallies: of the same groups.
        rounds: how often.
        seed: of the draws.
    """
    groups, random = tallies[0].groups, np.random.default_rng(seed)

    def drawn(count: int) -> np.ndarray:
        which = random.integers(0, groups, (count, groups)) + groups * np.arange(count)[:, None]
        return np.bincount(which.ravel(), minlength=count * groups).reshape(count, groups).astype(np.float64)

    chunks = [[t.metrics(weights) for t in tallies] for weights in _chunks(rounds, groups, drawn)]
    return [_joined([chunk[place] for chunk in chunks]) for place in range(len(tallies))]


def permuted(both: Tally, rounds: int, seed: int = 0) -> Draws:
    """Differences, second less first, where the two answers of a group change places as a coin says.

    Args:
        both: groups 0 to n - 1 are those of the first, n to 2n - 1 the same of the second.
        rounds: how often.
        seed: of the coins.
    """
    groups, random = both.groups // 2, np.random.default_rng(seed)
    chunks = []
    for swapped in _chunks(rounds, both.groups, lambda count: random.integers(0, 2, (count, groups)).astype(float)):
        first = both.metrics(np.hstack([1 - swapped, swapped]))
        second = both.metrics(np.hstack([swapped, 1 - swapped]))
        chunks.append({name: second[name] - first[name] for name in first})
    return _joined(chunks)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 %, of the resamples in which the metric exists; NaN where there is none."""
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def p_value(observed: float, draws: np.ndarray) -> float:
    """Two-sided: the share of permutations with a difference at least as large, what was observed being one of them."""
    known = draws[np.isfinite(draws)]
    return float((1 + (np.abs(known) >= abs(observed) - ROUNDING).sum()) / (1 + len(known)))


def resolution(groups: int, rounds: int) -> float:
    """The least p value that there can be: of so many permutations drawn, or of all that there are."""
    return max(1 / (1 + rounds), 2.0 ** (1 - groups))


def _chunks(rounds: int, width: int, draw: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    most = max(1, min(512, ELEMENTS // width))
    for begin in range(0, rounds, most):
        yield draw(min(most, rounds - begin))


def _joined(chunks: Sequence[Draws]) -> Draws:
    return {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}
