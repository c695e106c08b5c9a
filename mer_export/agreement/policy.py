"""What counts as the same answer: one rule per precision, which an output may override."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from mer_export.bundle import Strict
from mer_export.errors import UsageError

Verdict = Literal["pass", "warn", "fail", "not run"]
SEVERITY: tuple[Verdict, ...] = ("not run", "pass", "warn", "fail")
"""Ascending; the verdict of several is the gravest of them."""


UNITS_WORTH = 200.0
"""A metric in percent moves by up to about this over the number of units when one label changes."""


class Rule(Strict):
    """Limits of one precision.

    An element agrees when |a - b| <= atol + rtol * |largest reference score of its unit|. `relative` bounds the norm of
    all errors of an output over that of the reference, which also holds for outputs much smaller than `atol`.
    `flip_share` is the part of all units whose label may change beyond numeric noise (one unit is always allowed where
    it is above 0), `metric_drop` how many points a task metric may lose, `metric` the metric that is held against it
    (None: the one that the task is judged by).
    """

    atol: float = Field(ge=0)
    rtol: float = Field(ge=0)
    relative: float | None = Field(None, ge=0)
    flip_share: float = Field(0.0, ge=0, le=1)
    metric_drop: float = Field(0.0, ge=0)
    metric: str | None = None

    def flips_allowed(self, units: int) -> int:
        """How many of `units` labels may change."""
        return max(1, int(self.flip_share * units)) if self.flip_share else 0

    def drop_allowed(self, units: int) -> float:
        """How many points a metric of `units` labelled units may lose: where one label may change, what it is worth."""
        return max(self.metric_drop, UNITS_WORTH / max(units, 1)) if self.flip_share else self.metric_drop


RULES: dict[str, Rule] = {
    # float32 everywhere: only the order of sums differs. rtol keeps log-probabilities of -20 and less, where one
    # rounding step is already 2e-6, from being judged more strictly than those near 0. Outputs so small that atol says
    # nothing are as small as what rounding adds to them, so `relative` would judge noise.
    "fp32": Rule(atol=1e-5, rtol=1e-6),
    # Products of float32 numbers that were rounded to 10 bits, as fp16 has them; sums and all else stay float32.
    "tf32": Rule(atol=1e-2, rtol=5e-3, relative=0.01, flip_share=0.005, metric_drop=0.3),
    "fp16": Rule(atol=2e-2, rtol=1e-2, relative=0.02, flip_share=0.005, metric_drop=0.3),
    "bf16": Rule(atol=1e-1, rtol=5e-2, relative=0.05, flip_share=0.01, metric_drop=0.5),
    "int8": Rule(atol=3e-1, rtol=1e-1, relative=0.15, flip_share=0.02, metric_drop=0.5),
}
"""How far answers of a precision may be from those of fp32: at export, in parity and in benchmarks alike."""

PROOF = Rule(atol=1e-4, rtol=1e-5, flip_share=0.002)
"""What a fresh fp32 file may differ from its network by, before it is written: ten times the fp32 rule.

It is asked on what parity never sees: random numbers where no data is given, whole padded arrays, states between two
stages, texts of random tokens. `flip_share` is the part of token numbers that an encoder of speech may choose
differently; of few numbers it allows none.
"""


class Policy(Strict):
    """Rules by precision, and tolerances that replace theirs.

    Keys of `atol` and `rtol` are an output (`log_prob`, `*` for all), after a precision where it is for that one alone
    (`int8:log_prob`, `int8:*`).
    """

    rules: dict[str, Rule] = Field(default_factory=lambda: dict(RULES))
    atol: dict[str, float] = Field(default_factory=dict)
    rtol: dict[str, float] = Field(default_factory=dict)
    close: float = Field(0.5, gt=0, le=1)
    """Part of the tolerance past which an agreeing candidate still gets a warning."""
    listed_flips: int = Field(200, ge=0)
    """How many flips a report lists one by one; all are counted."""

    @classmethod
    def parse(cls, atol: Sequence[str] = (), rtol: Sequence[str] = ()) -> Policy:
        """The default policy with overrides: `log_prob:1e-4`, `int8:0.2`, `fp32:log_prob:1e-4`, or `1e-4` for all."""
        return cls(atol=_parse("--atol", atol), rtol=_parse("--rtol", rtol))

    def check_names(self, outputs: Iterable[str]) -> None:
        """Raises UsageError where an override names an output that does not exist."""
        known = set(outputs)
        for name in {key.rpartition(":")[2] for key in (*self.atol, *self.rtol)} - known - {"*"}:
            raise UsageError(
                f"tolerance for {name!r}: no such output or precision, there are {sorted(known)}, {list(self.rules)}"
            )

    def rule(self, precision: str) -> Rule:
        """The rule of a precision; raises UsageError where there is none."""
        if precision not in self.rules:
            raise UsageError(f"no parity rule for precision {precision!r}, there are {sorted(self.rules)}")
        return self.rules[precision]

    def tolerance(self, precision: str, output: str) -> tuple[float, float]:
        """(atol, rtol) of one output at one precision."""
        rule = self.rule(precision)
        keys = (f"{precision}:{output}", f"{precision}:*", output, "*")
        return (
            next((self.atol[key] for key in keys if key in self.atol), rule.atol),
            next((self.rtol[key] for key in keys if key in self.rtol), rule.rtol),
        )

    def relative(self, precision: str, output: str) -> float | None:
        """The limit of one output's error over its size; a tolerance wider than the rule's takes its place."""
        rule = self.rule(precision)
        atol, rtol = self.tolerance(precision, output)
        return None if atol > rule.atol or rtol > rule.rtol else rule.relative


def gravest(verdicts: Iterable[Verdict]) -> Verdict:
    """The gravest verdict; `not run` when there is none."""
    return max(verdicts, key=SEVERITY.index, default="not run")


def _parse(flag: str, values: Sequence[str]) -> dict[str, float]:
    parsed: dict[str, float] = {}
    for text in values:
        *names, number = text.split(":")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        precision = names.pop(0) if names and names[0] in RULES else None
        if len(names) > 1 or not all(names) or not 0 <= value < float("inf"):
            raise UsageError(
                f"{flag} {text}: expected a number such as 1e-4, after a precision or an output where it is for that "
                f"alone: int8:0.2, log_prob:1e-4, fp32:log_prob:1e-4"
            )
        parsed[":".join([*([precision] if precision else []), *(names or ["*"])])] = value
    return parsed
