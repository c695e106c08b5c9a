"""The files of a text tokenizer as one document in the form of `tokenizer.json`, whoever wrote them.

BERT's vocab.txt (Devlin et al., NAACL 2019), the byte pairs of GPT-2 (Radford et al., 2019) and RoBERTa (Liu et al.,
2019) as vocab.json and merges.txt, and fairseq's encoder.json and vocab.bpe, whose ids come from a dict.txt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.tokens.fairseq_dictionary import FIRST, LAST, UNKNOWN, read_dictionary
from mer_export.errors import InputError, UnsupportedError
from mer_export.untrusted.json_files import read_json_object

DOCUMENT, CONFIG, ADDED, WORD_PIECES = "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.txt"
BYTE_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
DICTIONARY = "dict.txt"
TEXT_FILES = (DOCUMENT, CONFIG, ADDED, WORD_PIECES, *BYTE_PAIRS[0], *BYTE_PAIRS[1], DICTIONARY)
"""Every file that decides an id."""
DECIDING = ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")
"""Parts of a document that decide an id."""
NEEDED = "tokenizer.json, vocab.txt, vocab.json with merges.txt, or encoder.json with vocab.bpe and dict.txt"
LONGEST_WORD = 100
"""Characters from which BERT takes a word for unknown as a whole."""
BERT, ROBERTA = ("[CLS]", "[SEP]", "[UNK]"), ("<s>", "</s>", "<unk>")
SPECIAL = ("cls_token", "sep_token", "unk_token")
"""What tokenizer_config.json calls these."""
NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Options of tokenizer_config.json by the name that BERT's normalizer has for them."""
ONLY: dict[str, tuple[Any, ...]] = {
    "do_basic_tokenize": (True,),
    "never_split": (None, []),
    "word_tokenizer_type": ("basic",),
}
"""Values without which a vocab.txt is read in another way than here."""

Json = dict[str, Any]


def text_files(path: Path) -> dict[str, Path]:
    """Files of a tokenizer by their usual name: of a folder, or one file and what stands beside it."""
    found = {name: path / name for name in TEXT_FILES}
    if not path.is_dir():
        own = DOCUMENT if path.suffix == ".json" else WORD_PIECES
        found = {own: path, CONFIG: path.parent / CONFIG, ADDED: path.parent / ADDED}
    return {name: file for name, file in found.items() if file.is_file()}


def read_tokenizer(path: Path) -> tuple[Json, np.ndarray | None]:
    """The document of a tokenizer, and the ids (int64) of its ids where a dictionary gives other ones.

    Raises:
        InputError: files are missing or damaged.
        UnsupportedError: tokenizer_config.json asks for what the files alone do not give.
    """
    files = text_files(path)
    config = read_json_object(files[CONFIG]) if CONFIG in files else {}
    if DOCUMENT in files:
        return _as_configured(read_json_object(files[DOCUMENT]), config), None
    for pair in BYTE_PAIRS:
        if files.keys() >= set(pair):
            return _byte_pairs(files, pair, config)
    if WORD_PIECES in files:
        return _as_configured(_word_pieces(files, config), config), None
    raise InputError(f"{path} is not a tokenizer: it needs {NEEDED}; it has {', '.join(files) or 'none of these'}")


def tokens_sha256(path: Path) -> str:
    """SHA-256 of all in a tokenizer that decides an id, in whatever files it stands; raises as `read_tokenizer`."""
    document, dictionary = read_tokenizer(path)
    said = json.dumps({part: document.get(part) for part in DECIDING}, sort_keys=True).encode()
    return sha256(said if dictionary is None else said + dictionary.tobytes()).hexdigest()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None


def _as_configured(document: Json, config: Json) -> Json:
    """The document with the options that tokenizer_config.json sets, which `transformers` puts before its own."""
    normalizer = document.get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return document
    options = {own: config[name] for name, own in NORMALIZER.items() if name in config}
    return document | {"normalizer": normalizer | options}


def _word_pieces(files: Mapping[str, Path], config: Json) -> Json:
    for option, allowed in ONLY.items():
        if config.get(option, allowed[0]) not in allowed:
            raise UnsupportedError(f"{files[CONFIG]}: {option} {config[option]!r} needs a {DOCUMENT} beside it")
    file = files[WORD_PIECES]
    # The last line of a file is empty and has no id; the number of a line is the id.
    vocabulary = {piece.rstrip("\r"): i for i, piece in enumerate(_text(file).split("\n")) if piece}
    first, last, unknown = _special(vocabulary, BERT, config, file)
    _refuse_added(vocabulary, files, config)
    return {
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "cls": [first, vocabulary[first]],
            "sep": [last, vocabulary[last]],
        },
        "model": {
            "type": "WordPiece",
            "vocab": vocabulary,
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": LONGEST_WORD,
        },
    }


def _byte_pairs(files: Mapping[str, Path], pair: Sequence[str], config: Json) -> tuple[Json, np.ndarray | None]:
    """RoBERTa's byte pairs, or those of GPT-2 with fairseq's dictionary: its vocabulary has no `<s>`."""
    file, merges = (files[name] for name in pair)
    vocabulary, dictionary = read_json_object(file), None
    if ROBERTA[0] not in vocabulary and DICTIONARY in files:
        vocabulary, dictionary = _through_dictionary(vocabulary, files[DICTIONARY], file)
    first, last, unknown = _special(vocabulary, ROBERTA, {} if dictionary is not None else config, file)
    if dictionary is None:
        _refuse_added(vocabulary, files, config)
    space = bool(config.get("add_prefix_space", False))
    document = {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            "type": "RobertaProcessing",
            "cls": [first, vocabulary[first]],
            "sep": [last, vocabulary[last]],
            "trim_offsets": True,
            "add_prefix_space": space,
        },
        "model": {"type": "BPE", "vocab": vocabulary, "merges": _merges(merges), "unk_token": unknown},
    }
    return document, dictionary


def _merges(file: Path) -> list[list[str]]:
    pairs = [line.split(" ") for line in _text(file).split("\n") if line and not line.startswith("#version")]
    wrong = next((p for p in pairs if len(p) != 2), None)
    if wrong is not None:
        raise InputError(f"{file} holds the line {' '.join(wrong)!r}, expected a pair of symbols")
    return pairs


def _through_dictionary(vocabulary: Json, dictionary: Path, file: Path) -> tuple[Json, np.ndarray]:
    """A vocabulary of GPT-2 with three special tokens at its end, and what fairseq makes of each id."""
    size = len(vocabulary)
    if sorted(i for i in vocabulary.values() if type(i) is int) != list(range(size)):
        raise InputError(f"{file} is not a vocabulary of GPT-2: its ids are not 0 to {size - 1}")
    ids = read_dictionary(dictionary)
    own = np.asarray([*(ids.get(str(i), UNKNOWN) for i in range(size)), FIRST, LAST, UNKNOWN], dtype=np.int64)
    return vocabulary | {name: size + n for n, name in enumerate(ROBERTA)}, own


def _special(vocabulary: Json, usual: Sequence[str], config: Json, file: Path) -> tuple[str, ...]:
    """The tokens before and behind a text and for what is unknown, as configured or as usual."""
    given = (config.get(key) for key in SPECIAL)
    contents = (g.get("content") if isinstance(g, dict) else g for g in given)
    names = tuple(c if isinstance(c, str) else u for c, u in zip(contents, usual, strict=True))
    missing = [n for n in names if n not in vocabulary]
    if missing:
        raise InputError(f"{file} lacks {', '.join(missing)}: a tokenizer needs {', '.join(names)}")
    return names


def _refuse_added(vocabulary: Json, files: Mapping[str, Path], config: Json) -> None:
    added = list(read_json_object(files[ADDED])) if ADDED in files else []
    decoder = config.get("added_tokens_decoder")
    described = decoder.values() if isinstance(decoder, dict) else ()
    added += [str(d.get("content")) for d in described if isinstance(d, dict)]
    unknown = [a for a in added if a not in vocabulary]
    if unknown:
        folder = next(iter(files.values())).parent
        raise UnsupportedError(f"{folder} adds {unknown[:3]} to its vocabulary: save the tokenizer as {DOCUMENT}")
