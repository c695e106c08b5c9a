"""Text to ids: word pieces, byte pairs, fairseq's dictionary, tokenizer.json, special tokens in a text, training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CASES
from damage import cut_short
from small_bundle import make_bundle
from small_tab import SENTENCES
from tokenizers.decoders import ByteLevel
from typer.testing import CliRunner

import cli
from mer_export.bundle import CONFIG, Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.byte_pair_training import train_byte_pairs
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.data.tokens.tokenizer import keep_tokenizer, load_tokenizer, text_tokens
from mer_export.errors import InputError, NotAvailableError, UnsupportedError, UsageError

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "I",
    "am",
    "Paul",
    "paul",
    "i",
    "cafe",
    "café",
    "猫",
    "cls",
    "##s",
]
ROBERTA = {s: i for i, s in enumerate(("<s>", "<pad>", "</s>", "<unk>", *"low<>/s", "lo", "low", "ow", "Ġlow", "Ġ"))}
MERGES = "#version: 0.2\no w\nl ow\nĠ low\n"
UNKNOWN, LITERALS = 1, ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "<s>", "</s>", "<mask>")


def folder(root: Path, files: Mapping[str, Any]) -> Path:
    """A folder of files, JSON where the content is an object."""
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (root / name).write_text(text, encoding="utf-8")
    return root


def word_pieces(root: Path, **config: Any) -> Path:
    """A folder of BERT with a vocab.txt."""
    own = {"tokenizer_config.json": config} if config else {}
    return folder(root, {"vocab.txt": "\n".join(PIECES) + "\n", **own})


def ids(path: Path | str, text: str) -> list[int]:
    return TextTokenizer.load(path).encode(text).tolist()


def added(number: int, content: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": special, **flags}


def document(model: Mapping[str, Any], splitter: Any, ends: tuple[tuple[str, int], ...], **more: Any) -> dict[str, Any]:
    """A tokenizer.json; `ends` are the special tokens before and behind a text."""
    around = {"type": "BertProcessing", "cls": list(ends[0]), "sep": list(ends[1])}
    fixed = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "decoder": None}
    return fixed | {"added_tokens": [], "pre_tokenizer": splitter, "post_processor": around, "model": model} | more


def bert_json(lower: bool, **more: Any) -> dict[str, Any]:
    """What a fast tokenizer of BERT saves."""
    model = {"type": "WordPiece", "vocab": {p: i for i, p in enumerate(PIECES)}, "unk_token": "[UNK]"}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    specials = [added(i, p) for i, p in enumerate(PIECES[:5])]
    given = {"normalizer": normalizer | {"lowercase": lower}, "added_tokens": specials} | more
    return document(model, {"type": "BertPreTokenizer"}, (("[CLS]", 2), ("[SEP]", 3)), **given)


# --- word pieces -----------------------------------------------------------------------------------------------------


def test_word_pieces_follow_the_vocabulary(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "cafe", "!", "猫", "the"]
    folder(tmp_path, {"vocab.txt": "\n".join(pieces) + "\n"})
    for path in (tmp_path, tmp_path / "vocab.txt"):
        assert ids(path, "Unaffable CAFÉ! 猫the xyz") == [2, 4, 5, 6, 7, 8, 9, 10, 1, 3]
        assert ids(path, "") == [2, 3]
    assert ids(tmp_path, "un" + 99 * "a") == [2, 1, 3]


def test_a_vocabulary_is_cased_as_its_configuration_says(tmp_path: Path) -> None:
    assert ids(word_pieces(tmp_path / "plain"), "I am Paul, café") == [2, 9, 6, 8, 1, 10, 3]
    cased = word_pieces(tmp_path / "cased", do_lower_case=False)
    for path in (cased, cased / "vocab.txt"):
        assert ids(path, "I am Paul, café") == [2, 5, 6, 7, 1, 11, 3]
    assert ids(word_pieces(tmp_path / "accents", strip_accents=False), "I CAFÉ") == [2, 9, 11, 3]
    assert ids(word_pieces(tmp_path / "chinese", tokenize_chinese_chars=False), "猫猫 猫") == [2, 1, 12, 3]


def test_options_that_need_other_code_are_refused(tmp_path: Path) -> None:
    for n, config in enumerate(
        ({"do_basic_tokenize": False}, {"never_split": ["a"]}, {"word_tokenizer_type": "mecab"})
    ):
        with pytest.raises(UnsupportedError, match=f"{next(iter(config))} .* needs a tokenizer.json"):
            ids(word_pieces(tmp_path / str(n), **config), "")
    more = folder(word_pieces(tmp_path / "more"), {"added_tokens.json": {"[CLS]": 2, "<speaker>": 15}})
    with pytest.raises(UnsupportedError, match=r"adds .'<speaker>'. to its vocabulary"):
        ids(more, "")
    with pytest.raises(UnsupportedError, match="adds"):
        ids(word_pieces(tmp_path / "decoder", added_tokens_decoder={"15": added(15, "<speaker>")}), "")


# --- byte pairs ------------------------------------------------------------------------------------------------------


def test_merges_apply_in_the_order_of_their_rank(tmp_path: Path) -> None:
    path = folder(tmp_path, {"vocab.json": ROBERTA, "merges.txt": MERGES})
    low, space = ROBERTA["low"], ROBERTA["Ġlow"]
    assert ids(path, "low low") == [0, low, space, 2]
    assert ids(path, "lo é") == [0, ROBERTA["l"], ROBERTA["o"], ROBERTA["Ġ"], 3, 3, 2]
    assert ids(path, "") == [0, 2]
    folder(path, {"tokenizer_config.json": {"add_prefix_space": True}})
    assert ids(path, "low low") == [0, space, space, 2]
    assert ids(path, "") == [0, 2]


def test_ids_of_fairseq_come_from_its_dictionary(tmp_path: Path) -> None:
    gpt2 = {s: i for i, s in enumerate([*"low", "Ġ", "ow", "low", "Ġlow", "<", "s", ">"])}
    lines = [f"{i} 9\n" for i in (6, 5, 0, 1, 7, 8, 9)]
    for names in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        path = folder(tmp_path / names[0], {names[0]: gpt2, names[1]: MERGES, "dict.txt": "".join(lines)})
        # `w` and the space are not in the dictionary.
        assert ids(path, "low low lo w<s>") == [0, 5, 4, 3, 6, 7, 3, 3, 8, 9, 10, 2]
        assert ids(path, "é") == [0, 3, 3, 2]
    folder(path, {names[0]: gpt2 | {"low": 400000}})
    with pytest.raises(InputError, match="its ids are not 0 to 9"):
        ids(path, "")


def test_training_gives_the_same_files_every_time(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from mer_export.data.tokens.byte_pair_training import *; "
    code += f"print(train_byte_pairs({SENTENCES!r}, 290, Path(sys.argv[1])))"
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    size = train_byte_pairs(SENTENCES, 290, tmp_path / "c")
    for file in ("vocab.json", "merges.txt"):
        assert len({(tmp_path / name / file).read_bytes() for name in "abc"}) == 1
    vocabulary = json.loads((tmp_path / "c" / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(size))
    assert [*vocabulary][:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert ([*vocabulary][-1], size <= 290) == ("<mask>", True)


def test_the_command_trains_on_lower_cased_lines(tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text("\n".join(s.upper() for s in SENTENCES), encoding="utf-8")
    arguments = ["data", "byte-pairs", str(tmp_path / "said.txt"), "--size", "300", "--out", str(tmp_path / "a")]
    run = CliRunner().invoke(cli.app, arguments)
    assert (run.exit_code, f"from {len(SENTENCES)} sentences" in run.output) == (0, True), run.output
    train_byte_pairs(SENTENCES, 300, tmp_path / "b")
    assert (tmp_path / "a" / "merges.txt").read_bytes() == (tmp_path / "b" / "merges.txt").read_bytes()
    assert isinstance(CliRunner().invoke(cli.app, arguments).exception, UsageError)


def test_a_trained_tokenizer_loses_nothing_of_any_text(tmp_path: Path) -> None:
    train_byte_pairs(SENTENCES, 290, tmp_path)
    trained = TextTokenizer.load(tmp_path)
    for text in (*SENTENCES, " 漢字 naïve…\n\t\0 ok "):
        found = trained.encode(text)[1:-1].tolist()
        assert ByteLevel().decode([trained.library.id_to_token(i) for i in found]) == text
        assert len(found) < len(text.encode()) or text not in SENTENCES


# --- tokenizer.json --------------------------------------------------------------------------------------------------


def test_a_tokenizer_json_alone_is_enough(tmp_path: Path) -> None:
    for lower, wanted in ((True, [2, 9, 6, 8, 3]), (False, [2, 5, 6, 7, 3])):
        path = folder(tmp_path / str(lower), {"tokenizer.json": bert_json(lower)})
        assert ids(path, "I am Paul") == ids(path / "tokenizer.json", "I am Paul") == wanted
    # The configuration beside it goes first, as in `transformers`.
    folder(path, {"tokenizer_config.json": {"do_lower_case": True}})
    assert ids(path, "I am Paul") == [2, 9, 6, 8, 3]


def test_a_tokenizer_json_goes_before_a_vocabulary_and_is_neither_cut_nor_padded(tmp_path: Path) -> None:
    cut = {"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    pad = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    whole = bert_json(False, truncation=cut, padding=pad | {"pad_type_id": 0, "pad_token": "[PAD]"})
    path = folder(word_pieces(tmp_path), {"tokenizer.json": whole})
    assert ids(path, "I am Paul") == [2, 5, 6, 7, 3]


def test_the_shared_cases_of_tokenizers_are_read() -> None:
    cases = {"10-tokenizer-json-only": "tok", "11-cased-tokenizer": "tok"}
    if not all((CASES / name).is_dir() for name in cases):
        pytest.skip("no shared cases here")
    for name, inner in cases.items():
        assert ids(CASES / name / inner, "I am Paul") == [2, 5, 6, 7, 3]


# --- special tokens in a text ----------------------------------------------------------------------------------------


def test_special_tokens_in_a_text_are_words(tmp_path: Path) -> None:
    pieces = [word_pieces(tmp_path / "txt"), folder(tmp_path / "json", {"tokenizer.json": bert_json(True)})]
    for path in pieces:
        assert ids(path, "[CLS] am") == [2, UNKNOWN, 13, UNKNOWN, 6, 3]
        for literal in LITERALS:
            assert not {0, 2, 3, 4} & set(ids(path, f"am {literal}{literal} [cls]")[1:-1])
    pairs = folder(tmp_path / "pairs", {"vocab.json": ROBERTA, "merges.txt": MERGES})
    model = {"type": "BPE", "vocab": ROBERTA, "merges": [["o", "w"], ["l", "ow"], ["Ġ", "low"]], "unk_token": "<unk>"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    specials = [added(n, s) for s, n in ROBERTA.items() if n < 4] + [added(len(ROBERTA), "<mask>") | {"lstrip": True}]
    fast = document(model, byte_level, (("<s>", 0), ("</s>", 2)), added_tokens=specials)
    for path in (pairs, folder(tmp_path / "fast", {"tokenizer.json": fast})):
        assert ids(path, "low</s>low") == [0, *(ROBERTA[s] for s in ("low", *"</s>", "low")), 2]
        assert ids(path, "<pad><unk> <mask>").count(3) == len("padunkmak")
        for literal in LITERALS:
            assert not {0, 1, 2, len(ROBERTA)} & set(ids(path, f"low {literal}{literal}")[1:-1])


@pytest.mark.parametrize("flag", [True, False])
def test_special_tokens_in_a_text_are_unknown_to_models_that_split_at_spaces(tmp_path: Path, flag: bool) -> None:
    words = {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "hi": 3}, "unk_token": "<unk>"}
    tokens = [added(0, "<s>", flag), added(1, "</s>", flag), added(4, "<turn>"), added(5, ":-)", False)]
    given = document(words, {"type": "WhitespaceSplit"}, (("<s>", 0), ("</s>", 1)), added_tokens=tokens)
    path = folder(tmp_path, {"tokenizer.json": given})
    # A token that was added as a word is one.
    assert ids(path, "hi <s> </s> <turn> <unk> hi:-)") == [0, 3, 2, 2, 2, 2, 3, 5, 1]


def test_special_tokens_in_a_text_are_letters_to_a_unigram(tmp_path: Path) -> None:
    pieces = [["<s>", 0], ["</s>", 0], ["<unk>", 0], ["▁", -2], ["s", -3], ["<", -4], [">", -4], ["▁hi", -3]]
    unigram = {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False}
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    given = document(unigram, spaces, (("<s>", 0), ("</s>", 1)), added_tokens=[added(0, "<s>"), added(1, "</s>")])
    assert ids(folder(tmp_path, {"tokenizer.json": given}), "hi <s>") == [0, 7, 3, 5, 4, 6, 1]


def test_half_a_surrogate_pair_is_left_out(tmp_path: Path) -> None:
    assert ids(word_pieces(tmp_path), "pa\ud800ul am") == [2, 8, 6, 3]


# --- what is not a tokenizer -----------------------------------------------------------------------------------------


def test_what_is_not_a_tokenizer_says_which_files_it_needs(tmp_path: Path) -> None:
    needed = r"it needs tokenizer\.json, vocab\.txt, vocab\.json with merges\.txt, or encoder\.json .*; it has "
    for files, has in (
        ({}, "none of these"),
        ({"spiece.model": "?"}, "none of these"),
        ({"vocab.json": {}}, "vocab.json"),
    ):
        path = folder(tmp_path / f"{len(files)}{has}", files)
        with pytest.raises(InputError, match=f"{path} is not a tokenizer: {needed}{has}"):
            ids(path, "")
    with pytest.raises(InputError, match="is not a tokenizer"):
        ids(tmp_path / "absent", "")


def words(**model: Any) -> dict[str, Any]:
    own = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"} | model
    return document(own, {"type": "Whitespace"}, (("a", 0), ("b", 1)))


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        ({"tokenizer.json": '{"model": '}, "is not JSON"),
        ({"tokenizer.json": "[" * 100_000}, "is not JSON"),
        ({"tokenizer.json": "[]"}, "holds a list"),
        ({"tokenizer.json": {}}, "is not a tokenizer that works"),
        ({"tokenizer.json": words(type="Runes")}, "is not a tokenizer that works"),
        ({"tokenizer.json": words(vocab={"a": "x"})}, "is not a tokenizer that works"),
        ({"tokenizer.json": words(unk_token="c")}, "is not a tokenizer that works"),
        (
            {"tokenizer.json": words() | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "ABCD"}}},
            "parse",
        ),
        ({"tokenizer.json": words() | {"post_processor": None}}, "does not put two special tokens around a text"),
        ({"tokenizer.json": words(), "tokenizer_config.json": "{"}, r"tokenizer_config\.json is not JSON"),
        ({"vocab.txt": "a\n"}, r"lacks \[CLS\], \[SEP\], \[UNK\]"),
        ({"vocab.json": {}, "merges.txt": ""}, "lacks <s>, </s>, <unk>"),
        ({"vocab.json": ROBERTA, "merges.txt": "a b c\n"}, "'a b c', expected a pair"),
        ({"vocab.json": ROBERTA, "merges.txt": "q r\n"}, "is not a tokenizer that works"),
        ({"encoder.json": {"a": 0}, "vocab.bpe": ""}, "lacks <s>"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path, files: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong) as refused:
        ids(folder(tmp_path, files), "")
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for act in (lambda: TextTokenizer.load(word_pieces(tmp_path)), lambda: train_byte_pairs([], 300, tmp_path / "out")):
        with pytest.raises(NotAvailableError, match=r"tokenizers is not installed: pip install .*\[text\]"):
            act()


def test_the_package_is_loaded_without_its_way_to_the_network(tmp_path: Path) -> None:
    code = "import sys; from mer_export.data.tokens.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1]); "
    code += "assert not {'torch', 'transformers', 'huggingface_hub', 'httpx', 'requests'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(word_pieces(tmp_path))], check=True)


# --- in bundles ------------------------------------------------------------------------------------------------------


def kept(bundle: Bundle, source: Path) -> DataSpec:
    """The data section of a bundle that has been given a tokenizer, read again."""
    spec = DataSpec(tokenizer=str(source))
    with bundle.commit() as change:
        change.write(CONFIG, yaml.safe_dump({"data": spec.model_dump(mode="json")}))
        keep_tokenizer(change, spec)
    return bundle_spec(Bundle.open(bundle.root), source)


@pytest.mark.parametrize("alone", [False, True])
def test_a_bundle_keeps_every_file_that_decides_an_id(tmp_path: Path, alone: bool) -> None:
    source = word_pieces(tmp_path / "source", do_lower_case=False)
    bundle = make_bundle(tmp_path / "bundle")
    spec = kept(bundle, source / "vocab.txt" if alone else source)
    assert spec.tokenizer == str(bundle.root / "tokenizer")
    assert text_tokens(spec, "I am Paul", lower=False).tolist() == [2, 5, 6, 7, 3]


def test_a_bundle_of_before_that_kept_a_vocabulary_alone_stays_uncased(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with bundle.commit() as change:
        change.write(CONFIG, "data: {}\n")
        change.write("tokenizer/vocab.txt", "\n".join(PIECES) + "\n")
    spec = bundle_spec(Bundle.open(bundle.root), tmp_path)
    assert load_tokenizer(str(spec.tokenizer)).encode("I am Paul").tolist() == [2, 9, 6, 8, 3]


def test_a_bundle_that_was_written_again_is_read_with_its_new_vocabulary(tmp_path: Path) -> None:
    """In one process, as servers do; also where the writer was killed before it had moved a file. Whoever had opened it
    before goes on with what that was."""
    root = make_bundle(tmp_path / "bundle").root
    found, specs = [], []
    for number, change in enumerate((Bundle.commit, Bundle.commit, lambda bundle: cut_short(bundle, 0))):
        with change(Bundle.open(root)) as staged:
            staged.write("tokenizer/vocab.txt", "\n".join([*PIECES[:5], *"xyz"[:number], *PIECES[5:]]) + "\n")
        specs.append(bundle_spec(Bundle.open(root), tmp_path))
        found.append(text_tokens(specs[-1], "I am Paul").tolist())
    assert found == [[2, 9, 6, 8, 3], [2, 10, 7, 9, 3], [2, 11, 8, 10, 3]]
    assert [text_tokens(spec, "I am Paul").tolist() for spec in specs] == found


def test_a_tokenizer_is_opened_again_when_a_file_of_it_is_written_or_added(tmp_path: Path) -> None:
    path = str(word_pieces(tmp_path))
    first = load_tokenizer(path)
    assert load_tokenizer(path) is first
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert [t.encode("I").tolist() for t in (first, load_tokenizer(path))] == [[2, 9, 3], [2, 5, 3]]
