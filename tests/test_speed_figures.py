"""Figures of README's section on speed are those of `benchmarks/results`, whose files all say where they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.suite import NETWORKS
from mer_export.bucket import Bucket

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())

TABLE = {
    "`cmerc` IEMOCAP, 110 utterances": ("cmerc-1thread", "cmerc_iemocap", 110),
    "`cmerc` MELD, 16 utterances": ("cmerc-1thread", "cmerc_meld", 16),
    "`mtee` MOSEI, 20 steps": ("mtee-1thread", "mtee_mosei", 20),
    "`emt` MOSI with BERT-base": ("emt-1thread", "emt_mosi", 50),
    "`tab` IEMOCAP, 459 M parameters": ("tab-2thread", "tab_iemocap", 32),
    "`facialmmt` with RoBERTa-large, 436 M": ("facialmmt-2thread", "facialmmt_fusion", 256),
}
"""Rows of the first table: file, network and first length of the bucket that is timed."""
COLUMNS = (
    ("onnxruntime fp32",),
    ("openvino fp32",),
    ("openvino bf16 bf16",),
    ("onnxruntime int8", "openvino int8 int8"),
)

ON_A_GPU = {
    "`cmerc` MELD": ("cmerc_meld", 1, 32),
    "`mtee` MOSEI": ("mtee_mosei", 1, 32),
    "`emt` MOSI with BERT-base": ("emt_mosi", 1, 32),
    "`mult` MOSI with BERT-base": ("mult_mosi", 1, 32),
    "`tab` IEMOCAP": ("tab_iemocap", 1),
    "`facialmmt` faces (Swin-tiny)": ("facialmmt_face", 1, 8),
}
"""Rows of the second one: network and batch sizes."""
PRECISIONS = (("fp32",), ("tf32",), ("fp16", "bf16"))


def found(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def alone(file: str, network: str, length: int) -> dict[str, float]:
    """Times faster than eager PyTorch by way, for one item in the bucket of that length."""
    for bench in found(file)["networks"][network]["bench"]:
        for case in bench["cases"]:
            if case["batch"] == 1 and next(iter(case["lengths"].values())) == length:
                return {f"{r['runtime']} {r['precision']}": r["ratio"]["median"] for r in case["rows"]}
    raise KeyError(network)


def on_a_gpu(network: str, batch: int, precisions: tuple[str, ...]) -> float:
    """Times faster than eager PyTorch in fp32, in the longest bucket and the best way of these precisions."""
    about = {"part": "inference", "network": network, "bucket": NETWORKS[network].buckets[-1].name, "batch": batch}
    own = (r for r in found("gpu")["rows"] if about.items() <= r.items() and "ratio" in r)
    return max(r["ratio"]["median"] for r in own if r["precision"] in precisions)


def several_buckets(precision: str) -> float:
    """How many times the items a second of one bucket `tab` answers in its own buckets on OpenVINO."""
    ratios = {r["name"]: r["ratio"]["median"] for r in found("tab_iemocap-lengths")["rows"]}
    return ratios[f"openvino {precision}, one at a time"] / ratios[f"openvino {precision}, all in one bucket"]


def of_the_limit() -> tuple[float, float]:
    """Least and most part, in percent, of the fastest fp32 product that the best fp32 runtime reaches at batch 32."""
    parts = []
    for content in map(found, ("cmerc-1thread", "mtee-1thread", "emt-1thread")):
        limit = max(content["limit_gflops"].values())
        for network in ("cmerc_iemocap", "cmerc_meld", "mtee_mosei", "mtee_iemocap", "emt_mosi"):
            measured = content["networks"].get(network, {"bench": []})
            for case in (c for bench in measured["bench"] for c in bench["cases"] if c["batch"] == 32):
                work = measured["gflop"][f"{Bucket(case['lengths']).name}, batch 32"]
                fp32 = [r for r in case["rows"] if r["runtime"] in ("onnxruntime", "openvino", "torchscript")]
                parts.append(max(1e5 * work / r["latency"]["p50"] / limit for r in fp32 if r["precision"] == "fp32"))
    return min(parts), max(parts)


def in_stages() -> float:
    """What FacialMMT gains in bf16 where no call that is timed encodes its dialogue."""
    return alone(*TABLE["`facialmmt` with RoBERTa-large, 436 M"])["openvino bf16 stages bf16"]


def original(case: str) -> float:
    """Times faster than the authors' code in the best way."""
    return max(r["times"]["median"] for r in found("original-1thread")["cases"][case]["rows"])


def planned(network: str) -> float:
    """Items a second against the authors' batching, in planned buckets and the best way."""
    rows = found(f"{network}-lengths")["rows"]
    return max(r["ratio"]["median"] for r in rows if r["name"].endswith("planned batches"))


def from_files(case: str, *ways: tuple[str, str]) -> list[float]:
    """Times faster than the authors' way from a file to labels, by way of `mer infer` and when."""
    rounds = found("end_to_end")["cases"][case]["rounds"]
    theirs = [r["again"]["seconds"] for r in rounds["the authors' way, eager PyTorch"]]
    return [median(a / r[when]["seconds"] for a, r in zip(theirs, rounds[way], strict=True)) for way, when in ways]


def from_files_as_typed() -> tuple[float, ...]:
    figures: list[float] = []
    for case in ("cmerc", "mtee", "emt", "facialmmt", "tab"):
        ways = found("end_to_end")["cases"][case]["rounds"]
        int8 = from_files(case, *((w, "again") for w in ways if w in ("onnxruntime int8", "openvino int8")))
        figures += [*from_files(case, ("", "first"), ("", "again")), max(int8)]
    return tuple(figures)


def trained() -> tuple[float, ...]:
    """Times faster than the authors' training loops."""
    recipes = found("training-1thread")["recipes"]
    shown = ("cmerc/meld", "cmerc/iemocap", "mtee/mosei", "emt/mosi", "tfr_net/mosi", "mult/mosi", "tab/iemocap")
    shown = (*shown, "facialmmt/meld_fusion")
    return tuple(recipes[r]["ways"]["as it is"]["times_authors"]["median"] for r in shown)


NO_TIMES = {"encoders", "many_clips"}
"""Results that hold differences and sizes alone."""
SENTENCES: tuple[tuple[str, Callable[[], tuple[float, ...]]], ...] = (
    (
        "`emt` {:.1f} times, `mtee` at its real steps (`data.trim_zeros`) {:.1f} (IEMOCAP, arrays of 50 steps) and "
        "{:.1f} (MOSEI, of 20), `cmerc` {:.1f} (IEMOCAP) and {:.1f} (MELD)",
        lambda: tuple(map(planned, ("emt_mosi", "mtee_iemocap", "mtee_mosei", "cmerc_iemocap", "cmerc_meld"))),
    ),
    (
        "in three buckets: {:.1f} (fp32) to {:.1f} times (int8) what one bucket",
        lambda: (several_buckets("fp32"), several_buckets("int8")),
    ),
    ("is at {:.0f} to {:.0f} % of what a plain matrix product", of_the_limit),
    ("gains {:.1f} in bf16 on an utterance whose dialogue is encoded already", lambda: (in_stages(),)),
    (
        "`cmerc` {:.0f} times faster on a dialogue of IEMOCAP and {:.0f} on sixteen, {:.0f} on MELD",
        lambda: tuple(map(original, ("cmerc_iemocap_52", "cmerc_iemocap_b16", "cmerc_meld_9"))),
    ),
    (
        "`mtee` {:.1f} on 50 steps as published ({:.0f} on one of 13 real steps",
        lambda: tuple(map(original, ("mtee_50", "mtee_13_of_50"))),
    ),
    (
        "`emt` {:.0f} at half of the lengths; `tab` {:.1f}; `facialmmt` {:.0f} on an utterance and {:.0f} on the ten",
        lambda: tuple(map(original, ("emt_half", "tab", "facialmmt", "facialmmt_dialogue"))),
    ),
    (
        "`cmerc` on a MELD file of 483 MB {:.1f} times faster when it is read first and {:.1f} from then on ({:.1f} in "
        "int8), `mtee` {:.1f} and {:.1f} ({:.1f}), `emt` {:.1f} and {:.1f} ({:.1f}), `facialmmt` {:.1f} and {:.1f} "
        "({:.1f}), `tab` {:.1f} and {:.1f} ({:.1f})",
        from_files_as_typed,
    ),
    (
        "`cmerc` {:.1f} times faster on MELD and {:.0f} on IEMOCAP, `mtee` {:.1f}, `emt` {:.1f}, `tfr_net` {:.1f}, "
        "`mult` {:.1f}, `tab` {:.1f}, `facialmmt` {:.1f}",
        trained,
    ),
)
"""What README says, and the figures that stand in it."""


@pytest.mark.parametrize("row", TABLE)
def test_the_table_has_the_ratios_of_the_results(row: str) -> None:
    times = alone(*TABLE[row])
    cells = [f"{max(times[w] for w in ways if w in times):.1f}" for ways in COLUMNS]
    assert f"| {row} | {' | '.join(cells)} |" in README


@pytest.mark.parametrize("row", ON_A_GPU)
def test_the_table_of_a_gpu_has_the_ratios_of_its_results(row: str) -> None:
    network, *batches = ON_A_GPU[row]
    cells = [" / ".join(f"{on_a_gpu(network, b, own):.1f}" for b in batches) for own in PRECISIONS]
    assert f"| {row} | {' / '.join(map(str, batches))} | {' | '.join(cells)} |" in README


@pytest.mark.parametrize(("said", "figures"), SENTENCES, ids=[said[:24] for said, _ in SENTENCES])
def test_sentences_have_the_figures_of_the_results(said: str, figures: Callable[[], tuple[float, ...]]) -> None:
    assert said.format(*figures()) in README


def test_every_result_says_its_command_and_its_processor() -> None:
    for page in RESULTS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert "python3 -m benchmarks." in text, page.name
        assert re.search(r"AMD EPYC|Intel|NVIDIA", text), page.name


def test_a_result_that_points_to_another_one_has_it_beside_it() -> None:
    pointed = {
        (page.name, name) for page in RESULTS.glob("*.md") for name in re.findall(r"[\w-]+\.md", page.read_text())
    }
    assert pointed
    assert {(page, name) for page, name in pointed if not (RESULTS / name).exists()} == set()


def test_a_paragraph_that_cites_times_names_their_processor() -> None:
    cited = 0
    for page in (ROOT / "docs").glob("*.md"):
        for paragraph in re.split(r"\n\s*\n", page.read_text(encoding="utf-8")):
            files = {*re.findall(r"\.\./benchmarks/results/([\w-]+)\.md", paragraph)} - NO_TIMES
            cited += len(files)
            assert not files or re.search(r"EPYC|Xeon|H200", paragraph), f"{page.name}: {files}"
    assert cited


def test_every_suite_that_is_named_runs_when_it_is_called() -> None:
    pages = " ".join(p.read_text(encoding="utf-8") for p in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    named = {*re.findall(r"python3 -m benchmarks\.(\w+)", pages)} - {"gpu"}
    assert len(named) > 10
    for name in named:
        code = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
        assert 'if __name__ == "__main__":' in code, name
