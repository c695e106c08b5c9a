"""The tables of docs/results.md from what commands measured, so that no number of it is typed.

    mer experiment sample/ravdess --data DIR --out runs/ravdess
    python -m benchmarks.tables sample/ravdess=runs/ravdess

keeps `experiment.json` as `docs/results/sample-ravdess.json` and writes its table between the lines

    <!-- table of sample/ravdess -->
    <!-- end of table -->

of the page. `NAME=BUNDLE,BUNDLE` makes one table of what `mer parity` found of bundles. Without arguments every table
is written anew from what is kept.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import output
from mer_export.agreement.compare import Comparison
from mer_export.agreement.policy import gravest
from mer_export.bundle import CONFIG, Bundle, Strict, write_atomic
from mer_export.errors import UsageError
from mer_export.experiment import RESULT, ExperimentResult
from mer_export.markdown import table
from mer_export.metrics import find
from mer_export.untrusted.yaml_files import read_yaml
from runtimes.parity.report import CandidateReport, ParityReport

DOCS = Path(__file__).parent.parent / "docs"
PAGE, KEPT = DOCS / "results.md", DOCS / "results"
MARKED = re.compile(r"(<!-- table of (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
AGREEMENT = (
    "The largest difference of a score from eager PyTorch, decisions and the metric that change, and the largest "
    "change of a score in a batch, in another order, with other padding or in another bucket."
)


class KeptTable(Strict):
    """The cells of a table as text, and what they are of."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> list[str]:
        """As Markdown."""
        return [self.caption, "", *table(self.header, self.rows)]


Kept = ExperimentResult | KeptTable


def main(arguments: Sequence[str] | None = None) -> None:
    """Takes over what was measured, `NAME=PLACE` each, and writes the page."""
    for text in sys.argv[1:] if arguments is None else arguments:
        name, _, place = text.partition("=")
        found = taken(place)
        write_atomic(KEPT / kept_as(name), found.model_dump_json(indent=1).encode() + b"\n")
    page = PAGE.read_text(encoding="utf-8")
    write_atomic(PAGE, with_tables(page, kept(page)).encode())


def taken(place: str) -> Kept:
    """What a finished experiment or the parity reports of bundles hold; raises UsageError for gaps in it."""
    measured = Path(place) / f"{RESULT}.json"
    if not measured.is_file():
        return agreement([Bundle.open(p) for p in place.split(",")])
    found = ExperimentResult.model_validate_json(measured.read_bytes())
    found.refuse_gaps()
    return found


def kept(page: str) -> dict[str, Kept]:
    """What the page has tables of, by name."""
    return {m[2]: _read(KEPT / kept_as(m[2])) for m in MARKED.finditer(page)}


def _read(path: Path) -> Kept:
    values = json.loads(path.read_bytes())
    return (KeptTable if "rows" in values else ExperimentResult).model_validate_json(path.read_bytes())


def kept_as(name: str) -> str:
    """The file that a result is kept in."""
    return f"{name.replace('/', '-')}.json"


def with_tables(page: str, results: Mapping[str, Kept]) -> str:
    """The page with every marked table written anew; raises UsageError where a result has no place on it."""
    unplaced = results.keys() - {m[2] for m in MARKED.finditer(page)}
    if unplaced:
        raise UsageError(f"the page has no line <!-- table of {min(unplaced)} -->")
    return MARKED.sub(lambda m: f"{m[1]}{as_table(results[m[2]])}{m[3]}", page)


def as_table(result: Kept) -> str:
    """What was measured, and the table."""
    lines = result.lines() if isinstance(result, KeptTable) else _of_experiment(result)
    return "\n".join(["", *lines, "", ""])


def _of_experiment(result: ExperimentResult) -> list[str]:
    lines = [result.caption(), "", *table(result.header(), [result.line(row) for row in result.rows])]
    return [*lines, "", *result.area_lines()] if result.areas else lines


def agreement(bundles: Sequence[Bundle]) -> KeptTable:
    """What parity found of bundles: a row for each runtime and precision, the worst over its files."""
    rows = []
    for bundle in bundles:
        report = ParityReport.load(bundle)
        if report is None:
            raise UsageError(f"{bundle.root} has no parity report: run mer parity {bundle.root} --data DIR")
        title = str(read_yaml(bundle.path(CONFIG))["title"])
        groups: dict[tuple[str, str], list[CandidateReport]] = {}
        for one in report.ran:
            groups.setdefault((one.runtime, one.precision), []).append(one)
        of = f"{title}: {report.units} units"
        rows += [(of, *key, *_worst(own, report)) for key, own in groups.items()]
    return KeptTable(
        caption=AGREEMENT,
        header=("bundle", "runtime", "precision", "verdict", "difference", "decisions", "metric", "other ways"),
        rows=tuple(rows),
    )


def _worst(candidates: Sequence[CandidateReport], report: ParityReport) -> tuple[str, ...]:
    compared: list[Comparison] = [c.comparison for c in candidates if c.comparison]
    error = max(e.max_abs for c in compared for e in c.outputs if e.output == report.task_output)
    metrics = [m.difference for c in compared for m in c.metrics if m.metric == report.metric]
    change = find(report.metric).change(max(metrics, key=abs)) if metrics else "–"
    moved = max((i.max_abs for c in candidates for i in c.invariances), default=None)
    flips = max(c.flips for c in compared)
    verdict = gravest(c.verdict for c in candidates)
    return verdict, f"{error:.1e}", str(flips), change, "–" if moved is None else f"{moved:.1e}"


if __name__ == "__main__":
    output.end_well(main)
