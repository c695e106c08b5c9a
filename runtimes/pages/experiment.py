"""The page of an experiment: its table, and each column as a picture."""

from __future__ import annotations

from pathlib import Path

from mer_export.bundle import write_atomic
from mer_export.experiment import RESULT, ExperimentResult
from runtimes.pages import charts
from runtimes.pages.page import render_page


def write_experiment(result: ExperimentResult, out: Path) -> Path:
    """Writes `experiment.html` into a directory; returns its path.

    Raises:
        NotAvailableError: jinja2 or matplotlib is missing.
    """
    pictures = [
        {"title": title, "svg": charts.experiment_chart(result, name)}
        for title, names in result.table.columns.items()
        for name in names[-1:]
    ]
    areas, rows = result.areas, result.rows
    content = {
        "result": result,
        "rows": [result.line(row) for row in rows],
        "areas": [result.area_line(row) for row in areas],
        "pictures": [p for p in pictures if p["svg"]],
    }
    path = out / f"{RESULT}.html"
    write_atomic(path, render_page("experiment.html", content).encode())
    return path
