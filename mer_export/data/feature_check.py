"""Do features look like those that a model was trained on? Values are held against its statistics while they pass.

Numbers of another size are found, such as features that were standardised twice or not at all. Another extractor whose
numbers have the same size is found by its name alone (`extractor_problem`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from mer_export.bundle import FeatureStatistics
from mer_export.data.missing import Incomplete
from mer_export.data.samples import Sample
from mer_export.data.spec import Extractor
from mer_export.errors import InputError

log = logging.getLogger("mer")

ROUNDING = 1e-3
"""Part of the largest training value by which the training range is widened: features are stored in half precision."""


class Limits(NamedTuple):
    """What a run may differ by: part of its values outside the training range, distance of the means in training
    deviations, ratio of the deviations either way."""

    outside: float
    shift: float
    scale: float


FEW = 64
"""Units below which the values of one speaker or one scene may be all there is."""
LIMITS_OF_FEW = Limits(outside=0.1, shift=5.0, scale=25.0)
LIMITS = Limits(outside=0.01, shift=1.0, scale=4.0)
"""Of the held-out splits of CMU-MOSI, RAVDESS and MELD, any 64 utterances in a row have at most 0.2 % of their values
outside, means 0.34 deviations off and deviations 2.2 times those of training or the other way round; single utterances
4 %, 2.3 deviations, and 10 times."""


@dataclass
class _Moments:
    """What has passed of one input, as distances from the training mean."""

    units: int = 0
    values: int = 0
    outside: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, array: np.ndarray, units: int, known: FeatureStatistics) -> None:
        slack = ROUNDING * max(abs(known.minimum), abs(known.maximum))
        low, high = known.minimum - slack, known.maximum + slack
        away = array.ravel().astype(np.float64) - known.mean
        self.units += units
        self.values += away.size
        self.total += float(away.sum())
        self.squares += float(away @ away)
        if array.min() < low or array.max() > high:
            self.outside += int(((array < low) | (array > high)).sum())


class Finding(NamedTuple):
    """How one input differs from training, and whether that is more than real data do."""

    input: str
    units: int
    outside: float
    shift: float
    scale: float
    foreign: bool

    @property
    def text(self) -> str:
        """`audio: 98 % of the values outside the training range, mean 12 deviations off, spread 9 times as wide`."""
        return (
            f"{self.input}: {100 * self.outside:.3g} % of the values outside the training range, mean "
            f"{self.shift:.3g} deviations off, spread {self.scale:.3g} times as wide"
        )


@dataclass
class FeatureCheck:
    """Accumulates what passes, from any number of threads. Samples are unpadded, so padding does not count.

    `known` are the statistics of a bundle; without any, nothing is known and nothing is said.
    """

    known: Mapping[str, FeatureStatistics]
    _seen: dict[str, _Moments] = field(default_factory=dict)
    _lock: Any = field(default_factory=Lock)
    _told: bool = False

    def add(self, samples: Iterable[Sample]) -> None:
        """Samples that a model took. Steps that were dropped on purpose count as they were before."""
        for sample in samples:
            inputs = sample.complete if isinstance(sample, Incomplete) else sample.inputs
            for name, known in self.known.items():
                array = inputs.get(name)
                if isinstance(array, np.ndarray) and array.size:
                    with self._lock:
                        self._seen.setdefault(name, _Moments()).add(array, len(sample.units), known)

    def seen(self) -> dict[str, dict[str, float]]:
        """What has passed, as numbers that `join` takes elsewhere."""
        with self._lock:
            return {name: asdict(moments) for name, moments in self._seen.items()}

    def join(self, seen: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds what has passed another check of the same statistics."""
        for name, other in seen.items():
            with self._lock:
                own = self._seen.setdefault(name, _Moments())
                for part, value in other.items():
                    setattr(own, part, getattr(own, part) + value)

    def findings(self) -> list[Finding]:
        """One for each input that is known and was seen."""
        with self._lock:
            return [_judged(name, self._seen[name], self.known[name]) for name in self.known if name in self._seen]

    @property
    def warning(self) -> str | None:
        """One line where some input is not like in training."""
        foreign = [f.text for f in self.findings() if f.foreign]
        if not foreign:
            return None
        return f"features are not like those that the model was trained on: {'; '.join(foreign)}: check the extractor"

    @property
    def verdict(self) -> str:
        """In few words, for a summary."""
        found = self.findings()
        foreign = [f.input for f in found if f.foreign]
        if not found:
            return "not known"
        return f"not as in training: {' and '.join(foreign)}" if foreign else "as in training"

    def tell(self, strict: bool = False) -> None:
        """Logs the warning, if there is one, once; raises InputError instead where it is strict."""
        warning = self.warning
        if warning and strict:
            raise InputError(f"{warning}, or leave --strict-features out")
        if warning and not self._told:
            self._told = True
            log.warning(warning)

    def summary(self) -> dict[str, Any]:
        """What a result says of features: the verdict, and the numbers where some are foreign."""
        foreign = {f.input: f._asdict() for f in self.findings() if f.foreign}
        return {"features": self.verdict} | ({"foreign_features": foreign} if foreign else {})


def _judged(name: str, seen: _Moments, known: FeatureStatistics) -> Finding:
    mean = seen.total / seen.values
    spread = math.sqrt(max(0.0, seen.squares / seen.values - mean**2))
    outside = seen.outside / seen.values
    if known.std == 0:
        # Constant in training: the range says all that can be said.
        return Finding(name, seen.units, outside, 0.0, 1.0, outside > LIMITS.outside)
    limits = LIMITS if seen.units >= FEW else LIMITS_OF_FEW
    shift, scale = abs(mean) / known.std, spread / known.std
    foreign = outside > limits.outside or shift > limits.shift or not 1 / limits.scale <= scale <= limits.scale
    return Finding(name, seen.units, outside, shift, scale, foreign)


def extractor_problem(known: Mapping[str, FeatureStatistics], said: Mapping[str, Extractor]) -> str | None:
    """Why features of these extractors are not the model's, where both are known; hashes decide before names do."""
    for name, own in known.items():
        other = said.get(name)
        if other is None or own.extractor == FeatureStatistics.UNKNOWN:
            continue
        hashes = own.sha256, other.sha256
        same = hashes[0] == hashes[1] if all(hashes) else own.extractor == other.name
        if not same:
            return (
                f"{name} was extracted by {_named(other.name, other.sha256)}, the model was trained on "
                f"{_named(own.extractor, own.sha256)}: extract it with that, or train on these features"
            )
    return None


def _named(name: str, sha256: str) -> str:
    return f"{name} ({sha256[:12]})" if sha256 else name
