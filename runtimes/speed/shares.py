"""Which part of the data goes to which bucket of what answers together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mer_export.bucket import Bucket, bucket_for
from mer_export.contract import Contract
from mer_export.data.samples import Sample, readable
from mer_export.errors import UsageError
from runtimes.backends.way import Way

Shares = Mapping[tuple[Way, Bucket], float]
"""The part of the data that goes to a bucket, of what answers it together and is not spread over threads yet."""
ItemLengths = tuple[tuple[str, int], ...]
"""The real length of an item along each sequence dim."""


def buckets_of(ways: Sequence[Way]) -> list[Bucket]:
    """The buckets of ways, least first."""
    return sorted({w.bucket for w in ways if w.bucket is not None})


def counted(contract: Contract, samples: Sequence[Sample] | None) -> Counter[ItemLengths] | None:
    """How many items there are of the same lengths; None without data."""
    return Counter(tuple(s.lengths(contract).items()) for s in readable(samples, contract)) if samples else None


def shares_of(ways: Sequence[Way], given: Counter[ItemLengths] | None) -> Shares:
    """The part of the items that goes to each bucket of what answers together; without data each bucket is one item.

    Items that fit no bucket at all count for none; of ways that lack a long bucket the parts do not add up.
    """
    buckets = buckets_of(ways)
    every = Counter(tuple(b.items()) for b in buckets) if given is None else given
    items = [(dict(own), count) for own, count in every.items() if bucket_for(dict(own), buckets) is not None]
    if not items:
        raise UsageError("no sample fits a bucket of this bundle: export a longer one or leave --data out")
    shares: dict[tuple[Way, Bucket], float] = {}
    whole = sum(count for _, count in items)
    for together in dict.fromkeys(w.in_any_bucket for w in ways):
        own = buckets_of([w for w in ways if w.in_any_bucket == together])
        shares |= {(together, b): 0.0 for b in own}
        for lengths, count in items:
            if (bucket := bucket_for(lengths, own)) is not None:
                shares[together, bucket] += count / whole
    return shares
