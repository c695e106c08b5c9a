from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small_bundle import make_bundle, make_samples, reweigh

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.evaluation import EVALUATION, Evaluation, dump_evaluations
from mer_export.exporters import export_variant
from mer_export.metrics.measure import class_tables
from runtimes.backends.table import known_backends
from runtimes.pages import charts
from runtimes.pages.report import write_report
from runtimes.parity import run as parity
from runtimes.speed import bench

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


class Checker(HTMLParser):
    """Fails on tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(bundle: Bundle) -> str:
    text = write_report(bundle).read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return text


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = make_bundle(tmp_path_factory.mktemp("report") / "bundle")
    export_variant(made, "torchscript", Bucket(utterances=8))
    parity.run_parity(made, make_samples()).save(made)
    bench.run_bench(made, make_samples(), batches=(1,), rounds=3, cold=False).save(made)
    records = [
        {"epoch": e, "train": {"total": 2 / e}, "seconds": 1.0, "splits": {"test": {"weighted_f1": 30.0 + e}}}
        for e in (1, 2, 3)
    ]
    with made.commit() as change:
        change.write("train/metrics.jsonl", "".join(json.dumps(r) + "\n" for r in records))
        metrics = {"weighted_f1": 33.0, "accuracy": 40.0} | {f"f1/{n}": 30.0 for n in made.manifest.task.labels}
        labels = np.arange(30) % 3
        tables = class_tables(made.manifest.task, labels, np.eye(3, dtype=np.float32)[labels // 2])
        measured = Evaluation(split="test", semantics="single", metrics=metrics, classes=tables)
        change.write(EVALUATION, dump_evaluations([measured]))
        change.manifest.provenance = {"source": "trained", "epoch": 2, "data": {"format": "<script>alert(1)</script>"}}
    return made


def test_the_page_shows_verdict_model_training_parity_and_speed(full: Bundle) -> None:
    text = page(full)
    assert "Same answers as PyTorch" in text
    assert "those of epoch 2" in text
    assert "torchscript-fp32-utterances8-bdynamic" in text
    assert text.count("<svg") == 4
    assert "utterances8" in text
    assert "Confusion matrix of 3 labels" in text
    assert "<th>precision" in text.replace(' class="n"', "")


def test_evaluations_of_an_earlier_release_are_shown_without_classes(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with bundle.commit() as change:
        change.write(
            EVALUATION, json.dumps({"test": {"single": {"weighted_f1": 33.0}, "batch": {"weighted_f1": 34.0}}})
        )
    text = page(bundle)
    assert "test, single" in text
    assert "How each label was decided" not in text
    with bundle.commit() as change:
        change.write(EVALUATION, json.dumps({"test": 1}))
    assert "train/evaluation.json cannot be read" in page(bundle)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium, which shows the page, is not installed")
@pytest.mark.parametrize("media", ["screen", "print"])
def test_no_table_is_cut_at_1280_pixels_or_on_paper(full: Bundle, tmp_path: Path, media: str) -> None:
    text = page(full)
    tables, size = text.count("<table"), "1280,2000"
    if media == "print":
        text, size = text.replace("@media print {", "@media all {"), "690,2000"
    script = (
        "<script>const t = [...document.querySelectorAll('table')];"
        "const cut = t.filter(x => x.scrollWidth > x.closest('.scroll').clientWidth + 1).length;"
        "document.title = `${t.length} tables, ${cut} cut`</script>"
    )
    (tmp_path / "page.html").write_text(
        text.replace("<details>", "<details open>").replace("</body>", script + "</body>")
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--window-size={size}"]
    command += [f"--user-data-dir={tmp_path}", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"<title>{tables} tables, 0 cut</title>" in done.stdout


def test_the_page_needs_nothing_from_outside_and_runs_nothing(full: Bundle) -> None:
    text = page(full)
    outside = re.findall(r'(?:src|href|@import|url)\s*[=(]\s*["\']?(?!#)([^"\')\s>]+)', text)
    assert outside == []
    assert "<script" not in text


def test_text_from_the_bundle_cannot_become_markup(full: Bundle) -> None:
    assert "&lt;script&gt;alert(1)" in page(full)


def test_a_bundle_without_reports_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    text = page(make_bundle(tmp_path / "bundle"))
    for sentence in ("Parity has not been checked", "mer parity", "mer bench", "Nothing has been exported yet"):
        assert sentence in text


def test_failed_parity_is_the_headline(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    export_variant(bundle, "torchscript", Bucket(utterances=8))
    reweigh(bundle, seed=3)
    parity.run_parity(bundle, make_samples()).save(bundle)
    text = page(bundle)
    assert "Not the answers of PyTorch" in text
    assert "other weights" in text


def test_parity_of_older_weights_is_not_shown_as_a_verdict(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    parity.run_parity(bundle, make_samples()).save(bundle)
    reweigh(bundle, seed=3)
    assert "Parity was checked for other weights" in page(bundle)


def test_variants_exported_after_the_parity_run_are_marked(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    parity.run_parity(bundle, make_samples()).save(bundle)
    export_variant(bundle, "torchscript", Bucket(utterances=4))
    assert "exported after the parity run" in page(bundle)


def test_a_report_of_another_version_counts_as_missing_and_is_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with bundle.commit() as change:
        change.write("reports/bench.json", "{}")
    text = page(bundle)
    assert "reports/bench.json cannot be read" in text
    assert "not measured" in text


def test_the_page_is_listed_in_the_bundle_and_the_bundle_stays_valid(full: Bundle) -> None:
    write_report(full.root)
    assert "reports/report.html" in Bundle.open(full.root).manifest.files
    Bundle.open(full.root).verify()


def test_a_runtime_has_its_colour_and_each_precision_its_shade() -> None:
    names = [*known_backends(), "openvino bf16", "openvino int8", "torch unpadded"]
    colours = {name: charts._colour(name) for name in names}
    assert len(set(colours.values())) == len(names), colours
    assert charts._colour("onnxruntime cuda graph") == colours["onnxruntime"]
