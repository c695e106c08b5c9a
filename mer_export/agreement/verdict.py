"""What the limits say of a comparison: findings, each with its verdict and a sentence."""

from __future__ import annotations

from mer_export.agreement.compare import Comparison
from mer_export.agreement.error import OutputError
from mer_export.agreement.policy import Policy, Rule, Verdict
from mer_export.metrics import find
from mer_export.task import Task

Finding = tuple[Verdict, str]


def findings(found: Comparison, precision: str, task: Task, policy: Policy) -> list[Finding]:
    """Everything that fails or deserves a look; nothing where both sides give the same answers."""
    rule = policy.rule(precision)
    errors = [_error(e, policy.relative(precision, e.output), policy.close) for e in found.outputs]
    return [
        *(finding for finding in errors if finding),
        *_flips("labels change", found.flips, found.flips_beyond_noise, found.units, rule),
        *_flips("scores change sign", found.sign_flips or 0, found.sign_flips_beyond_noise or 0, found.units, rule),
        *_metric(found, rule, rule.metric or task.headline),
        *_always(found),
    ]


def _always(found: Comparison) -> list[Finding]:
    if found.calibration is None or found.calibration.always is None:
        return []
    return [("warn", f"every one of {found.units} units is {found.calibration.always}, the reference tells them apart")]


def _error(error: OutputError, relative: float | None, close: float) -> Finding | None:
    limit = f"{error.atol:.0e} + {error.rtol:.0e} x |reference|"
    if error.nonfinite:
        return "fail", f"{error.output} holds {error.size}"
    if error.used > 1:
        return "fail", f"{error.output} is off by up to {error.max_abs:.1e}, allowed are {limit}"
    if relative is not None and error.relative is not None and error.relative > relative:
        return "fail", f"{error.output} is off by {error.relative:.1%} of its size, allowed are {relative:.0%}"
    if error.used > close:
        return "warn", f"{error.output} takes {error.used:.0%} of its tolerance {limit}"
    return None


def _flips(what: str, total: int, beyond: int, units: int, rule: Rule) -> list[Finding]:
    """Only what is beyond numeric noise counts; the rest is said."""
    if not total:
        return []
    if not beyond:
        return [("warn", f"{total} of {units} {what}, all within numeric noise")]
    allowed = rule.flips_allowed(units)
    noise = f" ({total - beyond} more within numeric noise)" if total > beyond else ""
    return [("fail" if beyond > allowed else "warn", f"{beyond} of {units} {what}, allowed are {allowed}{noise}")]


def _metric(found: Comparison, rule: Rule, name: str) -> list[Finding]:
    """A loss past the limit fails where the interval excludes chance, and warns where it does not.

    Where no loss at all is allowed, one that comes from labels within numeric noise alone warns too.
    """
    if not found.metrics:
        return []
    metric = find(name)
    limit = rule.drop_allowed(found.labelled) if metric.unit == "percent" else rule.metric_drop
    noise = not (rule.metric_drop or found.flips_beyond_noise or found.sign_flips_beyond_noise)
    made: list[Finding] = []
    for measured in found.metrics:
        lost = metric.lost(measured.reference, measured.candidate)
        if measured.metric == name and lost > limit:
            bounds = [metric.lost(0, bound) for bound in (measured.low, measured.high) if bound is not None]
            sure = bool(bounds) and min(bounds) > 0 and not noise
            text = (
                f"{name} is worse by {metric.text(lost)} points "
                f"(95 % interval {metric.change(measured.low)} to {metric.change(measured.high)}), "
                f"allowed are {limit:.3g}"
            )
            made.append(("fail" if sure else "warn", text))
    return made
