"""How fast the encoders of a bundle are, each alone: what stands between media and the arrays of a case."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Sequence

from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.encoders.attached import attached
from mer_export.encoders.encoder import Encoder
from runtimes.backends.way import Way, find_ways, in_memory, why_broken
from runtimes.predict.machine_profile import EncoderRow
from runtimes.speed.cases import Arrays, call, case_inputs, load, warm_all
from runtimes.speed.timing import Deadline, interleave

LATE = "the time was over: give more with mer tune --minutes"
NO_NETWORK = "computed without a network: its time is in what reads files"
Problems = list[tuple[str, str]]


def chosen(bundle: Bundle) -> list[tuple[str, Encoder]]:
    """The encoders of a bundle, with the input of each."""
    return [(name, encoder) for name, encoders in attached(bundle).items() for encoder in encoders]


def time_encoder(
    name: str,
    encoder: Encoder,
    backends: Container[str],
    batches: Sequence[int],
    rounds: int,
    threads: int | None,
    not_run: Problems,
    until: Deadline | None = None,
) -> Iterator[EncoderRow]:
    """Rows of one encoder on random values: for each bucket the ways to run it on some backends, interleaved.

    What breaks is named in `not_run`, and buckets whose turn comes past the deadline.
    """
    label = f"{name}: {encoder.identity.name}"
    if registry.get(encoder.bundle.manifest.system).compute:
        not_run.append((label, NO_NETWORK))
        return
    # A bundle takes no weights of its encoders along, so that there is no eager PyTorch to compare with.
    ways = [w for w in find_ways(encoder.bundle, threads) if w.variant and w.backend in backends]
    not_run += [(f"{label}, {w.name}", w.why_not) for w in ways if w.why_not is not None]
    able = [w for w in ways if w.why_not is None]
    for bucket in sorted({w.bucket for w in able if w.bucket is not None}):
        if until is not None and until.over:
            not_run.append((f"{label}, {bucket.name}", LATE))
            continue
        here = [w for w in able if w.bucket == bucket]
        found: dict[Way, dict[int, float]] = {}
        for batch in batches:
            arrays, _ = case_inputs(encoder.bundle.manifest.contract, bucket, batch, ())
            fitting = [w for w in here if w.fixed in (0, batch)]
            for group in in_memory(encoder.bundle, fitting):
                for way, ms in _timed(encoder.bundle, group, arrays, rounds, label, not_run):
                    found.setdefault(way, {})[batch] = ms / batch
        for way, times in found.items():
            yield EncoderRow(
                input=name,
                encoder=encoder.identity.name,
                items=_items(encoder),
                lengths=bucket,
                runtime=way.runtime,
                precision=way.precision,
                item_ms=times,
            )


def _timed(
    bundle: Bundle, ways: Sequence[Way], arrays: Arrays, rounds: int, label: str, not_run: Problems
) -> list[tuple[Way, float]]:
    """Milliseconds of a call, p50, of ways that are loaded together."""
    broken: dict[str, Exception] = {}
    with contextlib.ExitStack() as stack:
        entries = load(bundle, ways, stack, arrays, broken)
        calls = {name: call(session, arrays) for name, (_, session, _, arrays) in entries.items()}
        warmed = warm_all(calls, broken)
        turns = interleave({name: calls[name] for name in warmed}, rounds, broken=broken)
    not_run += [(f"{label}, {name}", why_broken(error)) for name, error in broken.items()]
    return [(entries[name][0], own.latency().p50) for name, own in turns.items()]


def _items(encoder: Encoder) -> int:
    """How many things of an utterance go through it: one sentence or window of sound, or the pictures of a clip."""
    return getattr(encoder.input, "frames", 1)
