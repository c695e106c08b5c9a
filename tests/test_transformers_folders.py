"""Folders that the `transformers` package writes: the same states and token ids as that package gives, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tab import SENTENCES
from torch import nn

from mer_export.data.tokens.byte_pair_training import train_byte_pairs
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.errors import InputError, UnsupportedError
from mer_export.layers.bert.folder import read_config
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.pretrained import load_pretrained

transformers = pytest.importorskip("transformers", reason="folders are written and read by the package `transformers`")

SIZES = {
    "vocab_size": 120,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}
SIZES |= {"max_position_embeddings": 40}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Electra": {"embedding_size": 12},
    **{kind: {"type_vocab_size": 1, "pad_token_id": 1} for kind in ("Roberta", "XLMRoberta", "Camembert")},
}
Write = Callable[[Path], Any]

# --- encoders --------------------------------------------------------------------------------------------------------


def random_model(name: str, **options: Any) -> Any:
    """A small model of a class, every parameter random, so that a slip shows."""
    kind = next(k for k in sorted(KINDS, key=len, reverse=True) if name.startswith(k))
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**SIZES | KINDS[kind]), **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def saved(name: str, dtype: torch.dtype = torch.float32, shard: str = "1GB", **options: Any) -> Write:
    return lambda path: random_model(name, **options).to(dtype).save_pretrained(path, max_shard_size=shard)


def as_bin(name: str, parts: int = 1, rename: Callable[[str], str] = str, **more: torch.Tensor) -> Write:
    """The folder of earlier versions: pytorch_model.bin, or its parts and their index."""

    def write(path: Path) -> None:
        model = random_model(name)
        model.config.save_pretrained(path)
        state = {rename(n): t for n, t in model.state_dict().items()} | more
        if parts == 1:
            torch.save(state, path / "pytorch_model.bin")
            return
        files = {n: f"pytorch_model-{i % parts + 1:05}-of-{parts:05}.bin" for i, n in enumerate(state)}
        for file in set(files.values()):
            torch.save({n: t for n, t in state.items() if files[n] == file}, path / file)
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))

    return write


def old_norms(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


ENCODERS: dict[str, Write] = {
    **{f"{n}, safetensors": saved(n) for n in ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")},
    "ElectraModel of one width, safetensors": saved("ElectraModel"),
    "BertModel without pooler": saved("BertModel", add_pooling_layer=False),
    "BertModel, safetensors in parts": saved("BertModel", shard="3KB"),
    "RobertaForMaskedLM, safetensors in parts": saved("RobertaForMaskedLM", shard="3KB"),
    "BertModel, float16": saved("BertModel", torch.float16),
    "RobertaModel, bfloat16": saved("RobertaModel", torch.bfloat16),
    "BertModel, pytorch_model.bin": as_bin("BertModel"),
    "BertForMaskedLM, pytorch_model.bin in parts": as_bin("BertForMaskedLM", parts=3),
    "BertModel with position_ids (up to 4.30)": as_bin(
        "BertModel", **{"embeddings.position_ids": torch.arange(40)[None]}
    ),
    "BertForPreTraining with gamma and beta (2018)": as_bin("BertForPreTraining", rename=old_norms),
    **{
        f"{kind}For{head}": saved(f"{kind}For{head}")
        for kind, heads in {
            "Bert": ("MaskedLM", "PreTraining", "NextSentencePrediction", "MultipleChoice"),
            "Roberta": ("MaskedLM", "MultipleChoice"),
            "Electra": ("PreTraining", "MaskedLM"),
            "XLMRoberta": ("MaskedLM",),
            "Camembert": ("MaskedLM",),
        }.items()
        for head in (*heads, "SequenceClassification", "TokenClassification", "QuestionAnswering")
    },
}


@torch.no_grad()
@pytest.mark.parametrize("form", ENCODERS)
def test_states_are_those_of_the_package(form: str, tmp_path: Path) -> None:
    ENCODERS[form](tmp_path)
    config = read_config(tmp_path)
    ours = Bert(config).eval()
    load_pretrained(ours, tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    lengths = torch.tensor([9, 4])
    real = torch.arange(9) < lengths[:, None]
    ids = torch.where(real, torch.randint(5, 120, (2, 9), generator=torch.Generator().manual_seed(1)), 0)
    ids[~real] = config.padding_token
    wanted = theirs(input_ids=ids, attention_mask=real.long()).last_hidden_state
    found = ours(ids, None, lengths)
    assert torch.allclose(found[real], wanted[real], atol=2e-5), (found - wanted)[real].abs().max()


# --- tokenizers ------------------------------------------------------------------------------------------------------

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPELLED = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789éüñå"
PIECES = [
    *SPECIAL,
    *LETTERS,
    *(f"##{c}" for c in LETTERS),
    *"!?.,'[]<>/-…猫好中",
    "##好",
    "oh",
    "happy",
    "Happy",
    "café",
]
TEXTS = [
    *SENTENCES,
    "",
    " ",
    "Oh NO, Not Again! I'm HAPPY",
    "Café naïve Ñandú Ångström e\u0301",
    "我好中猫cat猫猫 好",
    "[CLS] <s> </s>[MASK] <mask> [unk] <pad>",
    "tab\tnew\nline\r\0null \u200bzero\u00a0nbsp\u3000wide",
    "😀 👩‍👩‍👧 don't…  two  spaces ",
    "x" * 101,
    "İstanbul ẞtraße ＡＢＣ １２",
]


def bert_files(
    name: str = "Bert", pieces: list[str] = PIECES, keep: tuple[str, ...] = (), text: bool = False, **options: Any
) -> Write:
    """What a tokenizer of BERT saves, of which only `keep` stays; with `text` a vocab.txt in place of its own file."""

    def write(path: Path) -> None:
        made = getattr(transformers, f"{name}Tokenizer")({p: i for i, p in enumerate(pieces)}, **options)
        described(made, path, name)
        if text:
            (path / "tokenizer.json").unlink()
            (path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
        left_alone(path, keep)

    return write


def roberta_files(keep: tuple[str, ...] = (), text: bool = False, **options: Any) -> Write:
    """The same for the byte pairs of RoBERTa."""

    def write(path: Path) -> None:
        train_byte_pairs(SENTENCES, 290, path)
        pair = [path / name for name in ("vocab.json", "merges.txt")]
        merges = [tuple(line.split(" ")) for line in pair[1].read_text().split("\n") if line and line[0] != "#"]
        made = transformers.RobertaTokenizer(json.loads(pair[0].read_text()), merges, **options)
        described(made, path, "Roberta")
        for file in [path / "tokenizer.json"] if text else pair:
            file.unlink()
        left_alone(path, keep)

    return write


def unigram_files(name: str, **options: Any) -> Write:
    """A small vocabulary of SentencePiece's kind as the fast tokenizer of a model saves it."""
    pieces = [(p, -float(i)) for i, p in enumerate(("▁", *"aehinoprstuvwy!?,'", "▁oh", "▁no", "▁happy"))]
    first = {
        "XLMRoberta": ("<s>", "<pad>", "</s>", "<unk>"),
        "Camembert": ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>"),
    }
    last = {"XLMRoberta": ("<mask>",), "Camembert": ("<s>", "</s>", "<mask>")}
    whole = [*((p, 0.0) for p in first[name]), *pieces, *((p, 0.0) for p in last[name])]
    return lambda path: described(getattr(transformers, f"{name}Tokenizer")(vocab=whole, **options), path, name)


def described(tokenizer: Any, path: Path, kind: str) -> None:
    tokenizer.save_pretrained(path)
    getattr(transformers, f"{kind}Config")(**SIZES | KINDS[kind]).save_pretrained(path)


def left_alone(path: Path, keep: tuple[str, ...]) -> None:
    for file in path.iterdir() if keep else ():
        if file.name not in (*keep, "config.json"):
            file.unlink()


TOKENIZERS: dict[str, Write] = {
    "BERT uncased, as saved": bert_files(),
    "BERT cased, as saved": bert_files(do_lower_case=False),
    "BERT, accents kept": bert_files(strip_accents=False),
    "BERT cased, accents taken away": bert_files(do_lower_case=False, strip_accents=True),
    "BERT, Chinese characters not apart": bert_files(tokenize_chinese_chars=False),
    "BERT Chinese": bert_files(pieces=[*SPECIAL, *"我好中猫abct!", "##a", "##t"]),
    "BERT, other special tokens": bert_files(
        pieces=[*SPELLED.values(), *PIECES[len(SPELLED) :]], **{f"{n}_token": t for n, t in SPELLED.items()}
    ),
    "BERT uncased, tokenizer.json alone": bert_files(keep=("tokenizer.json",)),
    "BERT cased, tokenizer.json alone": bert_files(keep=("tokenizer.json",), do_lower_case=False),
    "BERT uncased, vocab.txt alone": bert_files(keep=("vocab.txt",), text=True),
    "BERT uncased, vocab.txt and tokenizer_config.json": bert_files(text=True),
    "BERT cased, vocab.txt and tokenizer_config.json": bert_files(text=True, do_lower_case=False),
    "BERT, accents kept, vocab.txt and tokenizer_config.json": bert_files(text=True, strip_accents=False),
    "BERT, Chinese not apart, vocab.txt and tokenizer_config.json": bert_files(text=True, tokenize_chinese_chars=False),
    "ELECTRA, as saved": bert_files("Electra"),
    "RoBERTa, as saved": roberta_files(),
    "RoBERTa with a space first, as saved": roberta_files(add_prefix_space=True),
    "RoBERTa, tokenizer.json alone": roberta_files(keep=("tokenizer.json",)),
    "RoBERTa, vocab.json and merges.txt alone": roberta_files(keep=("vocab.json", "merges.txt"), text=True),
    "RoBERTa with a space first, vocab.json, merges.txt, tokenizer_config.json": roberta_files(
        text=True, add_prefix_space=True
    ),
    "XLM-RoBERTa, as saved": unigram_files("XLMRoberta"),
    "CamemBERT, as saved": unigram_files("Camembert"),
}


@pytest.mark.parametrize("form", TOKENIZERS)
def test_token_ids_are_those_of_the_package(form: str, tmp_path: Path) -> None:
    TOKENIZERS[form](tmp_path)
    ours = TextTokenizer.load(tmp_path)
    # Where nothing but tokenizer.json says how it reads, it decides; the class of a model would put its defaults first.
    alone = {p.name for p in tmp_path.iterdir()} == {"tokenizer.json", "config.json"}
    theirs = (transformers.PreTrainedTokenizerFast if alone else transformers.AutoTokenizer).from_pretrained(tmp_path)
    ends = {*theirs("")["input_ids"], theirs.pad_token_id, theirs.mask_token_id}
    for text in TEXTS:
        found = ours.encode(text).tolist()
        # A special token that a text spells is text; in SentencePiece's vocabulary the package finds it all the same.
        wanted = theirs(text, split_special_tokens=True)["input_ids"]
        assert not ends & {*found[1:-1]}, text
        assert found == wanted or ends & {*wanted[1:-1]}, text


# --- what is refused -------------------------------------------------------------------------------------------------

OTHERS = {"DistilBert": "distilbert", "Albert": "albert", "MPNet": "mpnet", "DebertaV2": "deberta-v2"}
OTHERS |= {"ModernBert": "modernbert", "GPT2": "gpt2"}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_encoder_of_another_type_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=f"config.json describes an encoder of type '{OTHERS[kind]}'"):
        read_config(tmp_path)


def test_weights_without_their_config_are_refused(tmp_path: Path) -> None:
    saved("BertModel")(tmp_path)
    bert = Bert(read_config(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json"):
        load_pretrained(bert, tmp_path)


def test_a_config_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    bert_files(keep=("tokenizer_config.json",))(tmp_path)
    with pytest.raises(InputError, match=r"needs tokenizer\.json, vocab\.txt.*it has tokenizer_config\.json"):
        TextTokenizer.load(tmp_path)
