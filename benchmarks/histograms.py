"""Lengths of real utterances and dialogues, as numbers only: what the suites draw their items from.

    python3 -m benchmarks.histograms DATA

reads the transcripts of MELD (`meld_text`) and the word pieces of CMU-MOSI (`mosi_utt`) below DATA and writes
`benchmarks/histograms.json`: `COUNT` items of each kind, evenly from the shortest to the longest, in a fixed random
order, so that neighbours differ as they do in a data set.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("histograms.json")
COUNT = 256
PIECES = re.compile(r"\w+|[^\w\s]")
"""Words and punctuation marks: about the tokens of a byte-pair or word-piece vocabulary."""
SPECIAL = 2
"""Opening and closing token."""

Columns = dict[str, list[int]]


def lengths(kind: str) -> Columns:
    """Items of one kind: a list of lengths per column, of the same order."""
    return json.loads(FILE.read_text())[kind]["items"]


def collect(data: Path) -> dict[str, dict[str, object]]:
    """All kinds from the transcripts below `data`."""
    tokens: dict[tuple[str, str], list[int]] = defaultdict(list)
    utterances = []
    for split in ("train", "dev", "test"):
        with (data / "meld_text" / f"{split}.csv").open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                count = len(PIECES.findall(row["text"]))
                tokens[split, row["dialogue_id"]].append(count)
                utterances.append((count + SPECIAL, int(row["end_ms"]) - int(row["start_ms"])))
    dialogues = [(len(counts), sum(counts) + SPECIAL * len(counts)) for counts in tokens.values()]
    with np.load(data / "mosi_utt" / "text_tokens.npz", allow_pickle=False) as arrays:
        pieces = np.diff(arrays["offsets"])
    return {
        "meld_utterance": _kind("MELD, all utterances", ("tokens", "milliseconds"), utterances),
        "meld_dialogue": _kind("MELD, all dialogues", ("utterances", "tokens"), dialogues),
        "mosi_utterance": _kind("CMU-MOSI, all utterances", ("tokens",), [(int(n),) for n in pieces]),
    }


def _kind(source: str, columns: Sequence[str], items: Sequence[tuple[int, ...]]) -> dict[str, object]:
    kept = [item for item in sorted(items) if min(item) > 0]
    evenly = np.linspace(0, len(kept) - 1, COUNT).round().astype(int)
    order = np.random.default_rng(0).permutation(evenly)
    return {
        "source": source,
        "of": len(items),
        "items": {name: [kept[i][column] for i in order] for column, name in enumerate(columns)},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(collect(Path(sys.argv[1])), separators=(",", ":")) + "\n")
