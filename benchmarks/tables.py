"""The tables of docs/results.md from what experiments measured, so that no number of it is typed.

    mer experiment sample/ravdess --data DIR --out runs/ravdess
    python -m benchmarks.tables sample/ravdess=runs/ravdess

keeps `experiment.json` as `docs/results/sample-ravdess.json` and writes its table between the lines

    <!-- table of sample/ravdess -->
    <!-- end of table -->

of the page. Without arguments it writes every table anew from what is kept.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mer_export.bundle import write_atomic
from mer_export.errors import UsageError
from mer_export.experiment import RESULT, ExperimentResult
from mer_export.markdown import table

DOCS = Path(__file__).parent.parent / "docs"
PAGE, KEPT = DOCS / "results.md", DOCS / "results"
MARKED = re.compile(r"(<!-- table of (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Takes over finished experiments, `NAME=DIRECTORY` each, and writes the page."""
    for text in sys.argv[1:] if arguments is None else arguments:
        name, _, folder = text.partition("=")
        found = ExperimentResult.model_validate_json((Path(folder) / f"{RESULT}.json").read_bytes())
        found.refuse_gaps()
        write_atomic(KEPT / kept_as(name), found.model_dump_json(indent=1).encode() + b"\n")
    page = PAGE.read_text(encoding="utf-8")
    write_atomic(PAGE, with_tables(page, kept(page)).encode())


def kept(page: str) -> dict[str, ExperimentResult]:
    """The results that the page has tables of, by the experiment's name."""
    names = [m[2] for m in MARKED.finditer(page)]
    return {n: ExperimentResult.model_validate_json((KEPT / kept_as(n)).read_bytes()) for n in names}


def kept_as(name: str) -> str:
    """The file that an experiment's result is kept in."""
    return f"{name.replace('/', '-')}.json"


def with_tables(page: str, results: Mapping[str, ExperimentResult]) -> str:
    """The page with every marked table written anew; raises UsageError where a result has no place on it."""
    unplaced = results.keys() - {m[2] for m in MARKED.finditer(page)}
    if unplaced:
        raise UsageError(f"the page has no line <!-- table of {min(unplaced)} -->")
    return MARKED.sub(lambda m: f"{m[1]}{as_table(results[m[2]])}{m[3]}", page)


def as_table(result: ExperimentResult) -> str:
    """What is averaged, and the table."""
    rows = [result.line(row) for row in result.rows]
    return "\n".join(["", result.caption(), "", *table(result.header(), rows), "", ""])


if __name__ == "__main__":
    main()
