"""Which length buckets to export, and in which batch sizes to run them: the least expected cost for given data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.contract import Contract, Lengths
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from runtimes.predict.plan import Plan, PlannedBucket, Timing
from runtimes.speed.cost import BATCHES, CostModel, fit, measure, measured_ways, representative

CORNERS = 200
"""Lengths of one dim that may become a bucket, at most."""
STEPS = 6
"""Lengths of each dim that may, where there are several dims."""
WORTH = 0.01
"""Part of the cost that one more bucket has to save."""
SMALLER = 0.03
"""Part of the cost that a larger batch has to save."""
PASSES = 3


def read_lengths(samples: Iterable[Sample], contract: Contract) -> np.ndarray:
    """Real lengths (items, varying dims), held within what the network takes; raises UsageError without any."""
    dims = varying(contract)
    if not dims:
        raise UsageError("this model has no sequence dim that its samples decide: there is nothing to plan")
    rows = [[own[d] for d in dims] for own in (s.lengths(contract) for s in samples if s.readable(contract))]
    if not rows:
        raise UsageError("the data has no samples to plan for")
    least = [max(1, contract.shortest.get(d, 1)) for d in dims]
    return np.clip(np.array(rows), least, [contract.longest[d] for d in dims])


def varying(contract: Contract) -> list[str]:
    """Sequence dims whose length the samples decide; that of a shared input is the same for all."""
    shared = {str(s.dims[0]) for s in contract.inputs if not s.batched}
    return [d for d in contract.sequence_dims if d not in shared]


def make_plan(
    bundle: Bundle,
    samples: Iterable[Sample],
    most: int,
    source: str,
    format: str = "onnx",
    precision: str = "fp32",
    batch: int = 0,
    threads: int | None = 1,
    say: Callable[[str], None] | None = None,
) -> Plan:
    """Reads the lengths of `samples`, times a few shapes, and chooses at most `most` buckets with their batch sizes.

    Args:
        bundle: opened bundle.
        samples: what will have to be answered, or data like it; read once.
        most: buckets at most.
        source: what the data is called in the report.
        format: what will be exported; its buckets are timed where enough are there, else eager PyTorch.
        precision: of what will be exported.
        batch: the only batch size to consider; 0 for a choice.
        threads: of each call.
        say: receives progress.

    Raises:
        UsageError: no samples, no dim to plan, or fewer than one bucket.
    """
    if most < 1:
        raise UsageError(f"--max-variants must be 1 or more, not {most}")
    contract = bundle.manifest.contract
    lengths = read_lengths(samples, contract)
    fixed = _fixed(contract)
    shapes = [_bucket(contract, s, fixed) for s in representative(lengths)]
    chosen = measured_ways(bundle, format, precision, threads)
    timings = measure(bundle, chosen, shapes, [batch] if batch else BATCHES, say)
    dims = varying(contract)
    cost = fit([tuple(t.lengths[d] for d in dims) for t in timings], *_columns(timings))
    corners = choose(lengths, cost, most)
    plan = describe(lengths, corners, cost, contract)
    return plan.model_copy(
        update={"source": source, "measured": f"{chosen[0].runtime} {chosen[0].format}", "timings": timings}
    )


def choose(lengths: np.ndarray, cost: CostModel, most: int) -> np.ndarray:
    """Upper corners (buckets, dims) that hold every item at the least expected cost; fewer where more gain nothing."""
    return _one_dim(lengths[:, 0], cost, most)[:, None] if lengths.shape[1] == 1 else _greedy(lengths, cost, most)


def describe(lengths: np.ndarray, corners: np.ndarray, cost: CostModel, contract: Contract) -> Plan:
    """The plan that these corners are: batch sizes, shares, padding and expected cost."""
    fixed, items = _fixed(contract), len(lengths)
    routes, buckets = route(lengths, corners), []
    for number, corner in enumerate(corners):
        own = lengths[routes == number]
        if not len(own):
            continue
        seconds = cost.per_item(corner[None])[0]
        size = _smallest_good(seconds)
        buckets.append(
            PlannedBucket(
                lengths=_bucket(contract, corner.tolist(), fixed),
                batch=cost.batches[size],
                share=len(own) / items,
                padding=1 - float(own.sum()) / (len(own) * int(corner.sum())),
                item_ms=1000 * float(seconds[size]),
            )
        )
    whole = cost.per_item(lengths.max(axis=0)[None])[0]
    return Plan(
        source="",
        items=items,
        measured="",
        buckets=buckets,
        expected_ms=sum(b.share * b.item_ms for b in buckets),
        one_bucket_ms=1000 * float(whole[_smallest_good(whole)]),
    )


def route(lengths: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The number of the bucket that each item goes to, by the rule of `bucket_for`."""
    order = sorted(range(len(corners)), key=lambda i: (int(np.prod(corners[i])), tuple(corners[i].tolist())))
    fits = (lengths[:, None, :] <= corners[None, order, :]).all(axis=2)
    return np.array(order)[fits.argmax(axis=1)]


def _one_dim(lengths: np.ndarray, cost: CostModel, most: int) -> np.ndarray:
    """Exact, by dynamic programming over the lengths that occur."""
    ends = np.unique(lengths)
    if len(ends) > CORNERS:
        ends = np.unique(np.quantile(lengths, np.linspace(0, 1, CORNERS), method="higher"))
    counts = np.searchsorted(np.sort(lengths), ends, side="right")
    price = cost.per_item(ends[:, None]).min(axis=1)
    # best[j]: least cost of the items up to ends[j] in the buckets so far, the last of which ends there.
    best, back = [price * counts], []
    for _ in range(1, min(most, len(ends))):
        total = best[-1][:, None] + price[None, :] * (counts[None, :] - counts[:, None])
        total[np.tril_indices(len(ends))] = np.inf
        back.append(total.argmin(axis=0))
        best.append(total.min(axis=0))
    costs = [b[-1] for b in best]
    number = next(i for i, c in enumerate(costs) if c <= min(costs) * (1 + WORTH))
    places = [len(ends) - 1]
    for step in reversed(back[:number]):
        places.append(int(step[places[-1]]))
    return np.asarray(ends[sorted(places)], dtype=int)


def _greedy(lengths: np.ndarray, cost: CostModel, most: int) -> np.ndarray:
    """Adds the bucket that saves most, then moves each in turn to where it costs least.

    Candidates are all combinations of a few lengths of each dim; the bucket that holds everything always stays.
    """
    grid = [np.unique(np.quantile(column, np.linspace(0, 1, STEPS), method="higher")) for column in lengths.T]
    candidates = np.stack([g.ravel() for g in np.meshgrid(*grid, indexing="ij")], axis=1).astype(int)
    unique, counts = np.unique(lengths, axis=0, return_counts=True)

    def total(corners: np.ndarray) -> float:
        price = cost.per_item(corners).min(axis=1)
        return float((price[route(unique, corners)] * counts).sum())

    chosen = lengths.max(axis=0)[None]
    least = total(chosen)
    while len(chosen) < most:
        trials = [np.concatenate([chosen, c[None]]) for c in candidates]
        costs = [total(t) for t in trials]
        place = int(np.argmin(costs))
        if costs[place] > least * (1 - WORTH):
            break
        chosen, least = _moved(trials[place], candidates, total)
    return _tightened(chosen, lengths, total)


def _moved(
    chosen: np.ndarray, candidates: np.ndarray, total: Callable[[np.ndarray], float]
) -> tuple[np.ndarray, float]:
    least = total(chosen)
    for _ in range(PASSES):
        before = least
        for place in range(1, len(chosen)):
            for candidate in candidates:
                trial = chosen.copy()
                trial[place] = candidate
                if (now := total(trial)) < least:
                    chosen, least = trial, now
        if least == before:
            break
    return chosen, least


def _tightened(chosen: np.ndarray, lengths: np.ndarray, total: Callable[[np.ndarray], float]) -> np.ndarray:
    """Each bucket cut to the longest of the items that go there, where that does not make others dearer."""
    for place in range(len(chosen)):
        own = lengths[route(lengths, chosen) == place]
        if len(own) and place:
            trial = chosen.copy()
            trial[place] = own.max(axis=0)
            chosen = trial if total(trial) <= total(chosen) else chosen
    routes = route(lengths, chosen)
    kept = chosen[[i for i in range(len(chosen)) if i == 0 or (routes == i).any()]]
    return np.asarray(sorted(kept.tolist()))


def _smallest_good(seconds: np.ndarray) -> int:
    """The place of the smallest batch that is hardly worse than the best."""
    return int(np.argmax(seconds <= seconds.min() * (1 + SMALLER)))


def _columns(timings: Sequence[Timing]) -> tuple[list[int], list[float]]:
    return [t.batch for t in timings], [t.ms / 1000 for t in timings]


def _fixed(contract: Contract) -> Lengths:
    """Dims that samples do not decide, at the length that the contract's longest bucket gives them."""
    own = varying(contract)
    return {d: max(b[d] for b in contract.buckets) for d in contract.sequence_dims if d not in own}


def _bucket(contract: Contract, corner: Sequence[int], fixed: Lengths) -> Bucket:
    return contract.bucket(fixed | dict(zip(varying(contract), map(int, corner), strict=True)))
