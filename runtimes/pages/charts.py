"""Plots of the report as inline SVG text, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mer_export.errors import NotAvailableError
from mer_export.experiment import metric_of
from mer_export.install import not_installed
from mer_export.metrics import find
from runtimes.backends.table import known_backends

if TYPE_CHECKING:
    from mer_export.experiment import ExperimentResult, Row
    from mer_export.metrics.tally import ClassTable
    from runtimes.parity.report import ParityReport
    from runtimes.predict.robustness import RobustnessReport
    from runtimes.speed.bench_report import Case

LINES = ("#2f6fb5", "#d08c2f", "#2a9d8f", "#9b4f96", "#68717f")
SHADES = {"bf16": (0.0, 0.4), "int8": (1.0, 0.4), "unpadded": (1.0, 0.45)}
"""Words of a runtime's name that shade its colour: towards black (0) or white (1), by how much."""
INK, QUIET, RULE, BAD, GOOD = "#1c2430", "#68717f", "#dfe3e8", "#b3372f", "#2f6fb5"
PAGE = {INK: "ink", QUIET: "quiet", RULE: "rule", BAD: "fail"}
"""Colours that are those of the page, which is light or dark (style.css)."""
LEAST, MOST = 1e-4, 1e4
"""What the chart of errors shows at the edges: equal, and very different."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mer",
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.labelcolor": QUIET,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def parity_chart(report: ParityReport) -> str:
    """The part of its tolerance that each candidate takes: a row per runtime and format, a dot per bucket."""
    rows: dict[str, list[tuple[float, bool, str]]] = {}
    for candidate in report.ran:
        found = candidate.comparison
        error = next((e for e in found.outputs if e.output == report.task_output), None) if found else None
        if error is not None and candidate.format != "eager":
            entry = (min(max(error.used, LEAST), MOST), candidate.verdict != "fail", candidate.runtime)
            rows.setdefault(candidate.runtime, []).append(entry)
    if not rows:
        return ""
    with _figure(7.2, 0.9 + 0.42 * len(rows)) as (figure, axes):
        axes.axvline(1, color=BAD, linewidth=2, zorder=2)
        for y, entries in enumerate(rows.values()):
            axes.plot([LEAST, 1], [y, y], color=RULE, linewidth=5, solid_capstyle="butt", zorder=1)
            for size, good, runtime in entries:
                colour = _colour(runtime) if good else BAD
                axes.plot([size], [y], marker="o" if good else "X", color=colour, markersize=7, zorder=3)
        axes.set_xscale("log")
        axes.set_xlim(LEAST / 2, max(3.0, 3 * max(entry[0] for entries in rows.values() for entry in entries)))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"largest |{report.task_output} − reference| over the tolerance; past the red line it differs")
        return _svg(figure, "Largest error of each runtime as a part of its tolerance, logarithmic")


def latency_chart(case: Case) -> str:
    """Median latency of each candidate in one case, a whisker to p90, and the ratio to eager."""
    names = [_row_name(r.runtime, r.format) for r in case.rows]
    longest = max(r.latency.p90 for r in case.rows)
    with _figure(4.6, 0.7 + 0.34 * len(names)) as (figure, axes):
        for y, row in enumerate(case.rows):
            axes.barh(y, row.latency.p50, color=_colour(row.runtime), height=0.62)
            axes.plot([row.latency.p50, row.latency.p90], [y, y], color=INK, linewidth=1)
            text = f"{_milliseconds(row.latency.p50)} ms"
            text += "" if row.runtime == "torch" else f" · {row.ratio.median:.2f}×"
            axes.text(row.latency.p90 + 0.02 * longest, y, text, va="center", fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.55 * longest)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return _svg(figure, f"Median latency at {case.name}")


def training_chart(records: Sequence[Mapping[str, Any]], metric: str, kept: int | None) -> str:
    """Training loss and a metric of each measured split over epochs; a line at the epoch that was kept."""
    epochs = [r["epoch"] for r in records]
    losses = [r.get("train", {}).get("total") for r in records]
    splits = {s: [r["splits"].get(s, {}).get(metric) for r in records] for s in records[-1].get("splits", {})}
    with _figure(7.2, 2.6, columns=2) as (figure, (left, right)):
        if all(v is not None for v in losses):
            left.plot(epochs, losses, color=QUIET)
        left.set_title("training loss", loc="left", fontsize=10, color=QUIET)
        for (split, values), colour in zip(splits.items(), ("#2f6fb5", "#d08c2f", "#2a9d8f", QUIET), strict=False):
            right.plot(epochs, values, label=split, color=colour)
        right.set_title(_metric_title(metric), loc="left", fontsize=10, color=QUIET)
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.grid(axis="y", color=RULE, linewidth=0.8)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if kept is not None:
                axes.axvline(kept, color=QUIET, linewidth=1, linestyle=(0, (3, 3)))
        if splits:
            right.legend(loc="lower center")
        return _svg(figure, f"Training loss and {metric} over {len(epochs)} epochs")


def robustness_chart(report: RobustnessReport, metric: str) -> str:
    """A metric over the missing rate, and beside it the mean absolute error where the task has one."""
    shown = [n for n in (metric, "mae") if n in report.metrics]
    rates = [r.text for r in report.rates]
    with _figure(7.2, 2.6, columns=2) as (figure, panels):
        for axes, name in zip(panels, shown, strict=False):
            axes.plot(rates, report.metrics[name], color="#2f6fb5", marker="o", markersize=4)
            axes.set_title(_metric_title(name), loc="left", fontsize=10, color=QUIET)
            axes.set_xlabel("missing rate")
            axes.grid(axis="y", color=RULE, linewidth=0.8)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        return _svg(figure, f"{' and '.join(shown)} over the missing rate")


def experiment_chart(result: ExperimentResult, name: str) -> str:
    """A metric over the rates, a line per model with its deviation; without rates a dot per run in each row."""
    rows = [r for r in result.rows if r.metrics[name].values]
    if not rows:
        return ""
    title = _metric_title(metric_of(name)[1])
    if result.table.area is None:
        return _dots(rows, name, title, result.axes)
    models = list(dict.fromkeys(r.model for r in rows))
    with _figure(4.6, 2.8) as (figure, axes):
        for model, colour in zip(models, itertools.cycle(LINES)):
            found = sorted((float(r.cell[result.table.area]), r.metrics[name]) for r in rows if r.model == model)
            rates, means = [rate for rate, _ in found], [s.mean for _, s in found]
            axes.errorbar(rates, means, [s.std for _, s in found], label=model, color=colour, marker="o", markersize=3)
        axes.set_xlabel(result.table.area)
        axes.set_title(title, loc="left", fontsize=10, color=QUIET)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.legend(fontsize=8)
        return _svg(figure, f"{title} over {result.table.area}")


def _dots(rows: Sequence[Row], name: str, title: str, shown: Sequence[str]) -> str:
    names = [" ".join([r.model, *(r.cell[a] for a in shown if a in r.cell)]) for r in rows]
    with _figure(4.6, 0.8 + 0.34 * len(rows)) as (figure, axes):
        for y, row in enumerate(rows):
            found = row.metrics[name]
            axes.plot(found.values, [y] * len(found.values), "o", color="#2f6fb5", alpha=0.5, markersize=5)
            axes.plot([found.mean], [y], marker="|", markersize=14, color=INK)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        axes.set_title(title, loc="left", fontsize=10, color=QUIET)
        return _svg(figure, f"{title} of every run")


def class_chart(table: ClassTable) -> str:
    """How units were decided: a confusion matrix, or counts of each label where they hold side by side."""
    return _label_bars(table) if table.matrix is None else _matrix(table.labels, table.matrix)


def _matrix(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """Counts by true (row) and predicted label, darker for a larger part of the row."""
    size, places = len(labels), range(len(labels))
    widest = max(map(len, labels))
    with _figure(1.6 + 0.075 * widest + 0.5 * size, 1.1 + 0.05 * widest + 0.42 * size) as (figure, axes):
        from matplotlib.patches import Rectangle

        for y, row in enumerate(matrix):
            for x, count in enumerate(row):
                share = count / max(sum(row), 1)
                tone = GOOD if x == y else BAD
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=tone, alpha=0.85 * share, linewidth=0))
                colour = "#ffffff" if share > 0.6 else INK if count else QUIET
                axes.text(x, y, str(count), ha="center", va="center", fontsize=9, color=colour)
        axes.set_xticks(places, labels, rotation=40 if widest > 3 else 0, ha="right" if widest > 3 else "center")
        axes.set_yticks(places, labels)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", colors=INK)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        return _svg(figure, f"Confusion matrix of {size} labels, true by predicted")


def _label_bars(table: ClassTable) -> str:
    """Right, missed and wrongly said, for each label."""
    parts = {
        "right": (GOOD, [r.right for r in table.rows]),
        "missed": (QUIET, [r.support - r.right for r in table.rows]),
        "wrongly said": (BAD, [r.predicted - r.right for r in table.rows]),
    }
    with _figure(6.2, 0.9 + 0.36 * len(table.rows)) as (figure, axes):
        begin = [0] * len(table.rows)
        for name, (colour, counts) in parts.items():
            axes.barh(range(len(counts)), counts, left=begin, color=colour, height=0.62, label=name)
            begin = [b + c for b, c in zip(begin, counts, strict=True)]
        axes.set_yticks(range(len(begin)), table.labels)
        axes.set_ylim(len(begin) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return _svg(figure, "Units of each label: rightly said, missed, wrongly said")


def _metric_title(name: str) -> str:
    metric = find(name)
    return f"{metric.title}, %" if metric.unit == "percent" else metric.title


def _row_name(runtime: str, format: str) -> str:
    """The runtime, saying that PyTorch without a variant is eager."""
    if format == "eager":
        return runtime.replace("torch", "torch eager", 1)
    return runtime


def _colour(runtime: str) -> str:
    """The colour that a backend announces, shaded by the precision it computes in."""
    name, *words = runtime.split()
    colour = _rgb(known_backends()[name].colour)
    for target, part in (SHADES[w] for w in words if w in SHADES):
        colour = tuple(c + part * (target - c) for c in colour)
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour)


def _rgb(colour: str) -> tuple[float, ...]:
    """Red, green and blue in 0..1 of `#rrggbb`."""
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@contextmanager
def _figure(width: float, height: float, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise NotAvailableError(not_installed("matplotlib", "report")) from None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.subplots(1, columns)
        for one in figure.axes:
            one.patch.set_alpha(0)
        yield figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure as an <svg> element that scales, with `title` for screen readers."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head = re.search(r'viewBox="([^"]+)"', text)
    box = head.group(1) if head else "0 0 720 300"
    for colour, name in PAGE.items():
        text = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{name})", text)
    # Letters of a small figure are not blown up to the width of the page.
    width = float(box.split()[2]) / 72
    tag = f'<svg viewBox="{box}" style="max-width: {1.1 * width:.1f}in" role="img" aria-label="{title}">'
    return re.sub(r"<svg[^>]*>", tag, text, count=1)
