"""Mixed precision by measurement: which modules stay in fp32 so that answers are within a limit, at the least time.

Modules are ranked by what the debugger finds that each costs. The shortest beginning of that list which keeps the limit
is found by bisection, and every entry that the limit does not need is taken out again, the slowest first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.agreement.compare import Comparison
from mer_export.agreement.policy import Policy
from mer_export.agreement.verdict import findings
from mer_export.bundle import Bundle, Strict, Variant
from mer_export.data.samples import Sample
from mer_export.errors import MerError, ParityError, UsageError
from mer_export.exporters import precision
from mer_export.exporters.export import KEPT, job_of
from mer_export.exporters.export_job import ExportJob
from mer_export.exporters.precision_gate import measure, open_file
from mer_export.metrics import find
from mer_export.progress import SILENT, Progress
from mer_export.task import Task
from runtimes.debug.keep import call_ms, file_bytes, ranked
from runtimes.debug.parity import debug_variant

MOST = 16
"""Files that a search tries at most."""


class Trial(Strict):
    """A file that was tried: what it keeps, what it answers and what it costs. `lost` is in points of the metric; of
    0 bytes is a file that could not be made."""

    keep_fp32: list[str]
    within: bool
    flips: int
    flips_beyond_noise: int
    lost: float
    bytes: int
    ms: float
    problem: str = ""


class Search(Strict):
    """What a search tried, and what it chose."""

    limit: float
    metric: str
    units: int
    keep_fp32: list[str]
    trials: list[Trial]


class _Heard:
    """A session that is asked the same each time: what it answered the first time is its answer."""

    def __init__(self, session: Any):
        self._session = session
        self._answers: list[Any] = []
        self._asked = 0

    def again(self) -> _Heard:
        """Itself, to be asked from the first question on."""
        self._asked = 0
        return self

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> Any:
        """See `onnxruntime.InferenceSession`."""
        if self._asked == len(self._answers):
            self._answers.append(self._session.run(names, feed))
        self._asked += 1
        return self._answers[self._asked - 1]


@dataclass
class _Search:
    job: ExportJob
    reference: _Heard
    task: Task
    limit: float
    folder: Path
    shown: Progress
    trials: list[Trial] = field(default_factory=list)
    units: int = 0

    @property
    def spent(self) -> bool:
        return len(self.trials) >= MOST

    def tried(self, keep: Sequence[str]) -> Trial:
        """The trial of a list, which is made unless it was."""
        for trial in self.trials:
            if trial.keep_fp32 == [*keep]:
                return trial
        self.shown.begin(f"{len(keep)} modules in fp32")
        trial = self._try([*keep])
        self.trials.append(trial)
        return trial

    def _try(self, keep: list[str]) -> Trial:
        assert self.job.graph is not None
        path = self.folder / f"{len(self.trials)}" / "model.onnx"
        path.parent.mkdir()
        nothing = Trial(keep_fp32=keep, within=False, flips=0, flips_beyond_noise=0, lost=0.0, bytes=0, ms=0.0)
        try:
            precision.write(replace(self.job, keep_fp32=keep), self.job.graph.path, path, gated=False)
        except MerError as error:
            return nothing.model_copy(update={"problem": str(error)})
        session = open_file(path)
        found = measure(self.job, self.task, self.reference.again(), session)
        problem, lost = beyond(found, self.job.precision, self.task, self.limit)
        self.units = found.units
        return Trial(
            keep_fp32=keep,
            within=not problem,
            flips=found.flips,
            flips_beyond_noise=found.flips_beyond_noise,
            lost=lost,
            bytes=file_bytes(path),
            ms=call_ms(lambda: session.run(None, self.job.feed(self.job.batch or 1))),
            problem=problem,
        )


def beyond(found: Comparison, precision: str, task: Task, limit: float) -> tuple[str, float]:
    """What of a comparison breaks a limit or the rule of the precision, in words ("" for nothing), and the points lost.

    Points are those of the metric that the task is judged by; `limit` is the percent of labels, or of signs of a
    score, that may change beyond noise too. What one label is worth may always change, unless the limit is 0.
    """
    policy, metric = Policy(), find(task.headline)
    rule = policy.rule(precision).model_copy(update={"flip_share": limit / 100, "metric_drop": limit})
    lost = max((metric.lost(m.reference, m.candidate) for m in found.metrics if m.metric == metric.name), default=0.0)
    changed = {"labels change": found.flips_beyond_noise, "scores change sign": found.sign_flips_beyond_noise or 0}
    failed = [text for grade, text in findings(found, precision, task, policy) if grade == "fail"]
    if lost > rule.drop_allowed(found.labelled):
        failed.append(f"{metric.name} loses {lost:.2f}")
    for what, count in changed.items():
        if count > rule.flips_allowed(found.units):
            failed.append(f"{count} of {found.units} {what}")
    return failed[0] if failed else "", lost


def search(
    bundle: Bundle, variant: Variant, samples: Sequence[Sample], limit: float, progress: Progress = SILENT
) -> Search:
    """Chooses the modules that `variant` keeps in fp32.

    Args:
        bundle: opened bundle, which has the fp32 ONNX variant of the same form.
        variant: the one that is to be made, of a reduced precision.
        samples: real data, labelled where the metric is to count.
        limit: points of the task's metric that may be lost, and percent of the labels that may change beyond noise; one
            label may always.
        progress: shows each trial.

    Raises:
        UsageError: there is no fp32 ONNX variant to compare with.
        ParityError: no list keeps the limit.
    """
    options = {k: v for k, v in variant.options.items() if k != KEPT}
    plain = variant.model_copy(update={"model": "", "options": options})
    job, task = job_of(bundle, plain, samples), bundle.manifest.task
    if variant.format != "onnx" or job.graph is None:
        raise UsageError(
            f"{variant.name}: a limit is kept against the fp32 ONNX variant of the same form: "
            "run mer export --format onnx --precision fp32 first"
        )
    with tempfile.TemporaryDirectory() as folder, progress.over("within", MOST, "trial") as shown:
        run = _Search(job, _Heard(open_file(job.graph.path)), task, limit, Path(folder), shown)
        chosen = [] if run.tried([]).within else _choose(run, bundle, plain, samples)
    return Search(limit=limit, metric=task.headline, units=run.units, keep_fp32=chosen, trials=run.trials)


def _choose(run: _Search, bundle: Bundle, plain: Variant, samples: Sequence[Sample]) -> list[str]:
    order = ranked(debug_variant(bundle, plain, samples, block=False).rows)
    # With all of them in fp32 nothing may be left to reduce.
    while order and not run.tried(order).bytes and not run.spent:
        order = order[:-1]
    if not order or not run.tried(order).within:
        best = min(run.trials, key=lambda t: (t.lost, t.flips_beyond_noise))
        raise ParityError(
            f"no list of modules in fp32 keeps {plain.name} within {run.limit:g}: the best of {len(run.trials)} "
            f"loses {best.lost:.2f} {run.task.headline}, {best.problem}: export it in fp32"
        )
    low, high = 0, len(order)
    while high - low > 1 and not run.spent:
        middle = (low + high) // 2
        low, high = (low, middle) if run.tried(order[:middle]).within else (middle, high)
    kept = order[:high]
    for module in reversed(kept[:-1]):
        fewer = [m for m in kept if m != module]
        if not run.spent and run.tried(fewer).within:
            kept = fewer
    within = [t for t in run.trials if t.within]
    return min(within, key=lambda t: (len(t.keep_fp32) > len(kept), t.ms)).keep_fp32
