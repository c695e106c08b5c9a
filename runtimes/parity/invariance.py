"""Does a candidate's answer depend on what it must not depend on: neighbours, order, padding, bucket, what is kept?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mer_export.agreement.answers import Compared, Outputs
from mer_export.agreement.error import output_error
from mer_export.agreement.flips import find_flips
from mer_export.bucket import Bucket
from mer_export.bundle import Strict
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.stages import count_name
from mer_export.task import Task
from runtimes.backends.growing import GrowingSession
from runtimes.backends.session import Session

BATCH = 8
"""Samples per call of the batched passes where the session takes any number."""


class Invariance(Strict):
    """How far answers move when a sample is run in another way.

    `used` is the part of the tolerance that this takes. `flips` are decisions on real samples, each of them once.
    """

    name: str
    samples: int
    max_abs: float
    used: float
    flips: int
    flips_beyond_noise: int = 0


class Runner:
    """Samples in, unpadded output rows out, on one session."""

    def __init__(self, session: Session, contract: Contract):
        self.session = session
        self.contract = contract

    def run(self, samples: Sequence[Sample], bucket: Bucket | None = None, spoil: bool = False) -> list[Outputs]:
        """One call. `bucket` pads further where the session takes any; `spoil` puts garbage into padded places."""
        shape = bucket if self.session.bucket is None else self.session.bucket
        arrays = collate(samples, self.contract, shape, batch=self.session.batch or None)
        if spoil:
            spoil_padding(arrays, self.contract, samples)
        found = self.session.run(arrays)
        return [self._rows(found, i, s.lengths(self.contract)) for i, s in enumerate(samples)]

    def alone(self, samples: Sequence[Sample]) -> list[Outputs]:
        """Each sample in a call of its own."""
        return [self.run([s])[0] for s in samples]

    def batched(self, samples: Sequence[Sample]) -> list[Outputs]:
        """As many samples per call as the session takes, in the given order."""
        size = self.session.batch or BATCH
        return [rows for i in range(0, len(samples), size) for rows in self.run(samples[i : i + size])]

    def grown(self, samples: Sequence[Sample], dim: str) -> list[Outputs]:
        """As `batched`, the first step along `dim` of every sample, then two, and so on up to all of them."""
        size, found = self.session.batch or BATCH, []
        for i in range(0, len(samples), size):
            some = samples[i : i + size]
            lengths = [s.lengths(self.contract) for s in some]
            arrays = collate(some, self.contract, self.session.bucket, batch=self.session.batch or None)
            count = count_name(self.contract, dim)
            for steps in range(1, max(own[dim] for own in lengths) + 1):
                answers = self.session.run(arrays | {count: np.minimum(arrays[count], steps)})
            found += [self._rows(answers, row, own) for row, own in enumerate(lengths)]
        return found

    def buckets(self, sample: Sample) -> list[Bucket]:
        """Buckets that hold `sample`, as far as this session can take them."""
        if self.session.bucket is not None:
            return [self.session.bucket]
        own = sample.lengths(self.contract)
        return [b for b in self.contract.buckets if b.holds(own)]

    def _rows(self, found: Mapping[str, np.ndarray], item: int, lengths: Mapping[str, int]) -> Outputs:
        return {
            spec.name: found[spec.name][item][
                tuple(slice(lengths[d]) if isinstance(d, str) else slice(None) for d in spec.dims[1:])
            ].copy()
            for spec in self.contract.outputs
        }


def spoil_padding(arrays: dict[str, np.ndarray], contract: Contract, samples: Sequence[Sample], seed: int = 0) -> None:
    """Fills everything past the real lengths of `samples` with large random values, in place."""
    random = np.random.default_rng(seed)
    # Where the padding value itself says what is padding, there are no places for anything else.
    for spec in (s for s in contract.features if s.padding is None):
        for row, sample in zip(arrays[spec.name], samples, strict=False):
            own = sample.lengths(contract)
            real = tuple(slice(own[d]) if isinstance(d, str) else slice(None) for d in spec.dims[1:])
            kept = row[real].copy()
            if spec.dtype == "int64":
                row[...] = random.integers(0, spec.below or 2, row.shape)
            else:
                row[...] = 10 * random.standard_normal(row.shape)
            row[real] = kept


def spread(lengths: Sequence[Mapping[str, int]], count: int) -> list[int]:
    """Positions of at most `count` items, evenly over the order of their lengths, in ascending position."""
    order = sorted(range(len(lengths)), key=lambda i: tuple(lengths[i].values()))
    if len(order) <= count:
        return sorted(order)
    return sorted({order[round(k * (len(order) - 1) / (count - 1))] for k in range(count)})


def difference(name: str, pairs: Sequence[Compared], task: Task, tolerance: tuple[float, float]) -> Invariance:
    """How far the candidate of each pair is from its reference."""
    before, after = [p.reference[task.output] for p in pairs], [p.candidate[task.output] for p in pairs]
    error, flips = output_error(task.output, before, after, *tolerance), find_flips(pairs, task)
    return Invariance(
        name=name,
        samples=len(pairs),
        max_abs=error.max_abs,
        used=error.used,
        flips=len(flips),
        flips_beyond_noise=sum(not f.noise for f in flips),
    )


def measure(runner: Runner, alone: Sequence[Compared], task: Task, tolerance: tuple[float, float]) -> list[Invariance]:
    """Every pass of `PASSES` against the same samples run alone, which are the reference of each item.

    A pass that does not apply is left out.
    """
    samples, found = [item.sample for item in alone], []
    for name, run in PASSES.items():
        pairs = [replace(alone[i], candidate=rows) for i, rows in run(runner, samples)]
        if pairs:
            found.append(difference(name, pairs, task, tolerance))
    return found


def _batched(runner: Runner, samples: Sequence[Sample]) -> list[tuple[int, Outputs]]:
    return list(enumerate(runner.batched(samples))) if runner.session.batch != 1 else []


def _reordered(runner: Runner, samples: Sequence[Sample]) -> list[tuple[int, Outputs]]:
    if runner.session.batch == 1:
        return []
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    return list(zip(order, runner.batched([samples[i] for i in order]), strict=True))


def _padded(runner: Runner, samples: Sequence[Sample]) -> list[tuple[int, Outputs]]:
    """Every bucket that the session takes; a session of one fixed bucket has nothing to vary."""
    if runner.session.bucket is not None:
        return []
    return [(i, runner.run([s], bucket)[0]) for i, s in enumerate(samples) for bucket in runner.buckets(s)]


def _garbage(runner: Runner, samples: Sequence[Sample]) -> list[tuple[int, Outputs]]:
    return [
        (i, runner.run([s], bucket, spoil=True)[0])
        for i, s in enumerate(samples)
        for bucket in runner.buckets(s)[:1]
        if any(bucket[d] > n for d, n in s.lengths(runner.contract).items())
    ]


def _grown(runner: Runner, samples: Sequence[Sample]) -> list[tuple[int, Outputs]]:
    """Every answer from the stage that goes on after those ahead, as a live dialogue gets them."""
    session = runner.session
    if not isinstance(session, GrowingSession) or not session.options.reuse:
        return []
    session.forget()
    return list(enumerate(runner.grown(samples, session.dim)))


PASSES: dict[str, Callable[[Runner, Sequence[Sample]], list[tuple[int, Outputs]]]] = {
    "in a batch": _batched,
    "in a batch, other order": _reordered,
    "padded to every bucket": _padded,
    "garbage in padded places": _garbage,
    "one step after another": _grown,
}
