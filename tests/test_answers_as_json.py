"""Answers are written with the same values whether `orjson` is installed or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mer_export import task
from mer_export.task import Task, shortest
from runtimes.predict import output
from runtimes.predict.prediction import Prediction

orjson = pytest.importorskip("orjson", reason="compared with it")
LABELS = Task(kind="classification", output="log_prob", labels=("joy", "sad"))


def test_digits_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, (5000, 3), dtype=np.uint32)
    numbers = np.nan_to_num(bits.view(np.float32))
    fast = shortest(numbers)
    monkeypatch.setattr(task, "orjson", None)
    assert fast == shortest(numbers)
    assert shortest(np.asarray([0.1, np.inf])) == [0.1, float("inf")]


def test_samples_of_one_name_are_counted_apart() -> None:
    counts = dict.fromkeys(output.COUNTS, 0)
    said = [Prediction(s, u, "joy", 0, {}, ("text",)) for s, u in ("aa", "aa", "bb", ("c", "0"), ("c", "1"))]
    assert list(output.counted(said, counts)) == said
    assert (counts["samples"], counts["units"]) == (4, 5)


def test_rows_hold_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Prediction(
            "d/ü", "d/0", "joy", 0, {"joy": 0.9, "sad": 1e-05}, ("text", "audio"), ("joy",), None, "test", "sad"
        ),
        Prediction("d/ü", "d/1", None, None, {}, ()),
    ]
    texts = []
    for module in (orjson, None):
        monkeypatch.setattr(output, "orjson", module)
        output.write(rows, tmp_path / "out.jsonl", LABELS, ("split", "gold"))
        texts.append((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert texts[1] == "".join(
        json.dumps(json.loads(line), ensure_ascii=False) + "\n" for line in texts[0].splitlines()
    )
