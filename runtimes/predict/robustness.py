"""How a model bears missing tokens and frames: its metrics over the missing rate, and the area under each.

Steps are dropped as EMT-DLFR does, with its seeds. The paper trains one model per rate; this measures one model at
every rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from mer_export.bundle import Strict
from mer_export.contract import Lengths
from mer_export.data.missing import MODALITIES, UNKNOWN_TOKEN, incomplete
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.markdown import table
from mer_export.metrics import find
from mer_export.metrics.measure import area_over_rates
from mer_export.progress import SILENT, Progress
from mer_export.report import Report
from runtimes.predict.evaluate import evaluate
from runtimes.predict.predictor import Predictor

MOST_RATES = 1000


class Rate(Strict):
    """Share of missing steps by modality."""

    text: float = Field(ge=0, le=1)
    audio: float = Field(ge=0, le=1)
    vision: float = Field(ge=0, le=1)

    @property
    def name(self) -> str:
        """`0.3`, or `0.1,0.2,0.3` where modalities differ."""
        rates = list(dict.fromkeys(self.model_dump().values()))
        return f"{rates[0]:g}" if len(rates) == 1 else ",".join(f"{r:g}" for r in self.model_dump().values())


Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A metric, which may be undefined: JSON has no NaN, it is written as null."""


class RobustnessReport(Report):
    """Metrics by name, one value per rate. `areas` is the trapezoid over the rates (AUILC), not divided by their span;
    empty unless the rates rise from 0 in equal steps."""

    schema_version: int = 1
    split: str
    runtime: str
    weights_sha256: str
    rates: list[Rate]
    metrics: dict[str, list[Measured]]
    areas: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def path(cls) -> str:
        return "reports/robustness.json"

    @classmethod
    def command(cls) -> str:
        return "mer eval --missing-rate"

    def page(self) -> str:
        return markdown(self)


def parse_rates(text: str) -> list[Rate]:
    """Reads `0.0:1.0:0.1` (from, to, step), `0.3`, or `0.1,0.2,0.3` (text, audio, vision).

    Raises:
        UsageError: anything else, a rate outside 0..1, a step that does not end at `to`, or too many rates.
    """
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            steps = (last - first) / step
            if abs(steps - round(steps)) > 1e-6 or steps >= MOST_RATES:
                return _refuse(text)
            rates = [(round(first + i * step, 10),) * 3 for i in range(round(steps) + 1)]
        else:
            parts = [float(part) for part in text.split(",")]
            rates = [tuple(parts * 3)[:3] if len(parts) == 1 else tuple(parts)]  # type: ignore[list-item]
        return [Rate(**dict(zip(MODALITIES, r, strict=True))) for r in rates] or _refuse(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        return _refuse(text)


def _refuse(text: str) -> list[Rate]:
    raise UsageError(
        f"--missing-rate {text}: write 0.3, from:to:step such as 0.0:1.0:0.1 ({MOST_RATES} rates at most, to is the "
        "last), or text,audio,vision in 0..1"
    )


def run_robustness(
    predictor: Predictor,
    samples: Sequence[Sample],
    rates: Sequence[Rate],
    arrays: Lengths | None = None,
    split: str = "",
    progress: Progress = SILENT,
) -> RobustnessReport:
    """Evaluates the incomplete views of a whole split at every rate.

    Args:
        predictor: any backend.
        samples: the whole split in file order; which steps are missing depends on it.
        rates: in the order to report.
        arrays: lengths of the padded arrays of the split, where it came from such.
        split: its name, for the report.
        progress: shows each rate as it runs.
    """
    found: dict[str, list[float]] = {}
    unknown = (predictor.bundle.manifest.config.get("bert") or {}).get("unknown_token", UNKNOWN_TOKEN)
    with progress.over("missing data", len(rates), "rate") as shown:
        for rate in rates:
            shown.begin(f"missing rate {rate.name}")
            views = incomplete(samples, rate.model_dump(), arrays, unknown_token=unknown)
            for name, value in evaluate(predictor, views).metrics.items():
                found.setdefault(name, []).append(value)
    step = _step([r.text for r in rates]) if all(r.text == r.audio == r.vision for r in rates) else None
    return RobustnessReport(
        split=split,
        runtime=predictor.backend,
        weights_sha256=predictor.bundle.manifest.weights.sha256,
        rates=list(rates),
        metrics=found,
        areas={n: _area(v, step) for n, v in found.items()} if step else {},
    )


def _area(values: Sequence[float], step: float) -> float:
    """Where everything is missing all answers are one: a correlation that does not exist counts as none."""
    return float(area_over_rates(np.nan_to_num(np.asarray(values)), step))


def markdown(report: RobustnessReport) -> str:
    """The report as Markdown."""
    header = ["missing rate", *report.metrics]
    rows = [[r.name, *(find(n).printed(v[i]) for n, v in report.metrics.items())] for i, r in enumerate(report.rates)]
    if report.areas:
        rows.append(["area (AUILC)", *(find(n).printed(a) for n, a in report.areas.items())])
    return "\n".join([f"# Missing data, {report.split} split, {report.runtime}", "", *table(header, rows)]) + "\n"


def _step(rates: Sequence[float]) -> float | None:
    """The step of rates that rise from 0 in equal steps."""
    if len(rates) < 2 or rates[0] != 0:
        return None
    step = rates[1]
    even = all(abs(b - a - step) < 1e-9 for a, b in pairwise(rates))
    return step if even and step > 0 else None
