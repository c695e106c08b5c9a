"""What `mer eval` measured as a file: a page with pictures, Markdown or JSON, as its name ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mer_export.bundle import write_atomic
from mer_export.errors import UsageError
from mer_export.markdown import table
from mer_export.metrics import find
from mer_export.metrics.tally import ClassTable
from mer_export.terminal import json_text, summary_line
from runtimes.pages import charts
from runtimes.pages.page import render_page
from runtimes.predict.comparison import Comparison, class_page

Result = Mapping[str, Any] | Comparison
"""Of one bundle what `mer eval --json` says, or several side by side."""
SAID = ("metrics", "classes", "bundle", "foreign_features")
"""What of the result of one bundle is not a remark beside its metrics."""


def write_evaluation(result: Result, path: Path) -> None:
    """Writes a result as `.html`, `.md` or `.json`.

    Raises:
        NotAvailableError: jinja2 or matplotlib is missing.
    """
    write_atomic(path, FORMS[require_form(path)](result).encode())


def require_form(path: Path) -> str:
    """The ending of a file that a result can be written to; raises UsageError for another one."""
    if path.suffix not in FORMS:
        raise UsageError(f"{path}: an evaluation is written as {', '.join(FORMS)}, choose a name that ends so")
    return path.suffix


def shown(tables: Sequence[ClassTable]) -> list[dict[str, Any]]:
    """Tables of classes with their pictures, for `classes.html`."""
    return [
        {
            "title": "labels" if one.name == "labels" else find(one.name).title,
            "remark": "true by predicted" if one.matrix is not None else "each decided apart",
            "table": one,
            "chart": charts.class_chart(one),
        }
        for one in tables
    ]


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Metrics as text under `metric`, `value`."""
    return [(name, find(name).text(value)) for name, value in metrics.items()]


def remarks(result: Mapping[str, Any]) -> str:
    """What the metrics of one bundle were measured on and with."""
    said = {n: v for n, v in result.items() if n not in SAID}
    return summary_line(said | ({"variants": " ".join(said["variants"])} if "variants" in said else {}))


def _page(result: Result) -> str:
    if isinstance(result, Comparison):
        bundles = [(c.bundle, f"{c.system}, {c.runtime}, {c.precision}", c.classes) for c in result.contenders]
        title, caption = f"Evaluation on {result.data}", result.caption()
        header, rows = result.header(), result.rows()
    else:
        bundles = [(result["bundle"], remarks(result), _tables(result))]
        title, caption = (
            f"Evaluation of {result['bundle']}",
            f"Split {result['split']}, {result['semantics']} semantics.",
        )
        header, rows = ("metric", "value"), metric_rows(result["metrics"])
    content = {
        "title": title,
        "caption": caption,
        "header": header,
        "rows": rows,
        "bundles": [{"name": n, "said": said, "classes": shown(tables)} for n, said, tables in bundles],
    }
    return render_page("evaluation.html", content)


def _markdown(result: Result) -> str:
    if isinstance(result, Comparison):
        return result.page()
    lines = [f"# Evaluation of {result['bundle']}", "", remarks(result), ""]
    lines += [*table(("metric", "value"), metric_rows(result["metrics"])), "", *class_page(_tables(result))]
    return "\n".join(lines)


def _json(result: Result) -> str:
    return json_text(result.model_dump(mode="json") if isinstance(result, Comparison) else result)


def _tables(result: Mapping[str, Any]) -> list[ClassTable]:
    return [ClassTable.model_validate(t) for t in result["classes"]]


FORMS: dict[str, Callable[[Result], str]] = {".html": _page, ".md": _markdown, ".json": _json}
"""By the ending of the file."""
