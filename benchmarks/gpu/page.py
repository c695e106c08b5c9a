"""What was found on a GPU, as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import output
from benchmarks.gpu.device import limit_gflops
from benchmarks.gpu.rows import ALL, Row
from benchmarks.suite import NETWORKS
from mer_export.markdown import table
from runtimes.backends.way import grouped_reasons
from runtimes.parity.report import used_part

Column = tuple[str, Callable[[Row], str]]
Limits = dict[str, float]
SYSTEMS = tuple(dict.fromkeys(network.system for network in NETWORKS.values()))
ASKED: dict[str, Sequence[str]] = {
    **dict.fromkeys(("training run", "training feed"), SYSTEMS),
    **dict.fromkeys(("training step", "inference", "parity"), tuple(NETWORKS)),
    "mer infer": SYSTEMS,
    "cold start": tuple(NETWORKS),
}
"""What each part is of."""
IN_BUCKETS = ("inference", "parity")


def markdown(found: dict[str, Any]) -> str:
    """The runs, one table per part and network, and what was not measured with its reason."""
    rows, here = found["rows"], found["runs"][0]["machine"]
    limits = limit_gflops(rows)
    gpu = "; ".join(", ".join(g.values()) for g in here["gpu"]) or "no GPU"
    lines = ["# Every network on a GPU", "", f"{gpu}; {here['cpu']}.", ""]
    versions = {k: v for run in found["runs"] for k, v in run["machine"]["versions"].items()}
    lines.append(", ".join(f"{k} {v}" for k, v in versions.items()) + f", Python {here['python']}.")
    lines += ["", *(f"`{run['command']}`  " for run in found["runs"])]
    if found["runs"][0]["device"] == "cpu":
        lines += ["", "**A rehearsal on the CPU: these times say nothing about a GPU.**"]
    lines += _fastest(rows)
    for part in COLUMNS:
        own = [r for r in rows if r["part"] == part]
        lines += ["", f"## {part.capitalize()}"] if own else []
        for about in dict.fromkeys(map(_about, own)):
            lines += ["", *_section([r for r in own if _about(r) == about], about, COLUMNS[part], limits)]
    return "\n".join([*lines, *_left_out(rows)]) + "\n"


def _left_out(rows: Sequence[Row]) -> list[str]:
    """The networks and systems, and of networks the buckets, of which a part says nothing."""
    lines = []
    for part, names in ASKED.items():
        said = [r for r in rows if r["part"] == part and (r["status"] == "measured" or r["way"] == ALL)]
        missing = [text for name in names if (text := _lacking(part, name, [r for r in said if r["network"] == name]))]
        if missing:
            lines.append(f"- {part}: {', '.join(missing) if said else 'all'}")
    return ["", "## Not run", "", "What nobody asked for, or the time did not last for:", "", *lines] if lines else []


def _lacking(part: str, name: str, said: Sequence[Row]) -> str:
    """A network that is lacking, or those of its buckets that are; nothing where none is."""
    own = {r.get("bucket") for r in said}
    if not own or None in own or part not in IN_BUCKETS:
        return "" if own else name
    return ", ".join(f"{name} in {b.name}" for b in NETWORKS[name].buckets if b.name not in own)


def _fastest(rows: Sequence[Row]) -> list[str]:
    """The fastest way of each precision, and how many times faster than eager PyTorch in fp32 it is."""
    timed = [r for r in rows if r["part"] == "inference" and "ratio" in r]
    if not timed:
        return []
    table_rows = []
    for about in dict.fromkeys(map(_about, timed)):
        own = [r for r in timed if _about(r) == about]
        cells = []
        for precisions in (("fp32",), ("tf32",), ("bf16", "fp16")):
            best = max((r for r in own if r["precision"] in precisions), key=_median, default=None)
            cells.append(f"{best['way']}: {_median(best):.1f}" if best else "–")
        table_rows.append((*map(str, about), f"{own[0]['p50_ms']:.1f}", *cells))
    header = ("network", "bucket", "batch", "eager fp32, ms", "fastest in fp32", "in TF32", "in 16 bits")
    note = "Times faster than eager PyTorch in fp32 on the same GPU, host arrays to host arrays; random weights."
    return ["", "## The fastest ways", "", note, "", *table(header, table_rows)]


def _median(row: Row) -> float:
    return float(row["ratio"]["median"])


def _section(rows: Sequence[Row], about: tuple[Any, ...], columns: Sequence[Column], limits: Limits) -> list[str]:
    network, bucket, batch = about
    title = ", ".join([*filter(None, (network, bucket)), *([f"batch {batch}"] if batch else [])])
    measured = [r | {"limits": limits} for r in rows if r["status"] == "measured"]
    lines = [f"**{title}**", ""] if title else []
    if measured:
        lines += table([n for n, _ in columns], [tuple(say(r) for _, say in columns) for r in measured])
    without = [(r["way"], f"{r['status']}: {r['reason']}") for r in rows if r["status"] != "measured"]
    return lines + [f"- {', '.join(names)}: {why}" for why, names in grouped_reasons(without)]


def _about(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(k) for k in ("network", "bucket", "batch"))


def _number(name: str, form: str = ".3f") -> Callable[[Row], str]:
    return lambda row: "–" if row.get(name) is None else format(row[name], form)


def _ratio(row: Row) -> str:
    return output.spread(row["ratio"]) if "ratio" in row else "–"


def _of_limit(row: Row) -> str:
    limit = row["limits"].get(row.get("precision"))
    return f"{row['gflops'] / limit:.1%}" if limit and row.get("gflops") else "–"


def _what(row: Row) -> str:
    named = [f"{k} {row[k]}" for k in ("cuda", "cudnn", "capability", "memory_gib") if k in row]
    return "runs here" if row.get("kind") == "runtime" else ", ".join(named)


def _difference(row: Row) -> str:
    return "–" if row.get("max_abs_difference") is None else f"{row['max_abs_difference']:.1e}"


def _used(row: Row) -> str:
    return "–" if row.get("of_tolerance") is None else used_part(row["of_tolerance"])


WAY: Column = ("way", lambda row: row["way"])
TIMES: tuple[Column, ...] = (
    WAY,
    ("p50 ms", _number("p50_ms")),
    ("p90 ms", _number("p90_ms")),
    ("first ms", _number("first_ms", ".0f")),
    ("items/s", _number("items_per_s", ".0f")),
    ("x eager fp32", _ratio),
    ("of its precision's limit", _of_limit),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "device": (
        WAY,
        ("TFLOP/s", lambda row: f"{row['gflops'] / 1000:.1f}" if "gflops" in row else "–"),
        ("GB/s", _number("gb_per_s", ".0f")),
        ("what", _what),
    ),
    "training run": (
        ("device", lambda row: row["way"]),
        ("seconds of the last epoch", _number("seconds", ".2f")),
        ("loss", _number("loss", ".5f")),
    ),
    "training feed": (
        WAY,
        ("ms per step of an epoch", _number("step_ms", ".2f")),
        *((n, _number(f"{n}_share", ".1%")) for n in ("waiting", "forward", "backward")),
        ("outside forward and backward", _number("outside_share", ".1%")),
    ),
    "training step": (*TIMES, ("peak MiB of the device", _number("peak_mib", ".0f"))),
    "inference": TIMES,
    "parity": (
        WAY,
        ("verdict", lambda row: row["verdict"]),
        ("max abs difference", _difference),
        ("of tolerance", _used),
        ("why", lambda row: row["reason"] or ""),
    ),
    "mer infer": (
        ("runtime", lambda row: row["way"]),
        ("answers", _number("utterances", "d")),
        ("labels changed", _number("labels_changed", "d")),
        ("max abs difference", _difference),
        ("seconds of the whole process", _number("seconds", ".1f")),
    ),
    "cold start": (
        WAY,
        ("interpreter s", _number("start_s", ".2f")),
        ("load s", _number("load_s", ".2f")),
        ("first call ms", _number("first_call_ms", ".0f")),
        ("peak MiB of the process", _number("peak_mib", ".0f")),
    ),
    "packages": (
        ("what is changed", lambda row: row["way"]),
        ("stage", lambda row: row["stage"]),
        ("ended by", lambda row: row["ended_by"] or "–"),
    ),
}
"""Of the table of each part, in the order in which they are measured."""
