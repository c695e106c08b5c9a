"""config.json of an encoder folder, as the `transformers` package writes it; needs no torch.

The shapes of the weights do not tell how many heads there are, where positions start, or which activation was trained:
config.json does, so it decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mer_export.errors import InputError, UnsupportedError, UsageError
from mer_export.layers.bert.config import BertConfig
from mer_export.untrusted.json_files import read_json_object

Form = Literal["bert", "roberta"]
FORMS: dict[str, Form] = {
    "bert": "bert",
    "electra": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
}
"""What the network can be: by its name in config.json, whose special tokens and positions it has."""
PREFIXES = ("bert.", "electra.", "roberta.")
"""Of an encoder's weights in a model with a head."""
FILES = ("config.json", "bert_config.json")
"""The latter in folders of before 2019."""
SIZES = {
    "vocab_size": "vocabulary",
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "positions",
}
"""What every config.json has to say."""
SETTINGS = SIZES | {"type_vocab_size": "segments", "layer_norm_eps": "epsilon"}
DROPOUTS = {"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout"}
"""Of training: another value in the configuration is not a contradiction."""
DECIDED = (*SETTINGS.values(), "first_position")
"""What a configuration has to agree with."""
SPECIAL: dict[Form, dict[str, int]] = {
    "bert": {"first_token": 101, "last_token": 102, "unknown_token": 100, "padding_token": 0},
    "roberta": {"first_token": 0, "last_token": 2, "unknown_token": 3, "padding_token": 1},
}
SPECIAL_NAMES: dict[Form, dict[str, str]] = {
    "bert": {"pad_token_id": "padding_token"},
    "roberta": {"bos_token_id": "first_token", "eos_token_id": "last_token", "pad_token_id": "padding_token"},
}
"""config.json of a BERT does not know [CLS] and [SEP]."""
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "use_task_id": (False,),
}
"""Values that the network has; an absent or empty entry is the first."""


@dataclass(frozen=True)
class Description:
    """What a folder says of its encoder: settings by our names, dropouts and special tokens included."""

    path: Path
    kind: str
    settings: Mapping[str, int | float]

    @property
    def form(self) -> Form:
        """Whose special tokens and positions it has."""
        return FORMS[self.kind]


def find_config(folder: Path | str) -> Path | None:
    """The file of a folder that describes its encoder; None where there is none."""
    return next((path for name in FILES if (path := Path(folder) / name).is_file()), None)


def read_description(folder: Path | str) -> Description:
    """What a folder's config.json says.

    Raises:
        InputError: no such file, or one that does not describe an encoder.
        UnsupportedError: an encoder that this network cannot be.
    """
    path = find_config(folder) or Path(folder) / FILES[0]
    content = {name: value for name, value in read_json_object(path).items() if value is not None}
    kind = _kind(path, content)
    _check_supported(path, content)
    if missing := [name for name in SIZES if name not in content]:
        raise InputError(f"{path} does not describe an encoder, it lacks {missing}: give the folder of a BERT encoder")
    names = SETTINGS | DROPOUTS | SPECIAL_NAMES[FORMS[kind]]
    given = {theirs: content[theirs] for theirs in names if theirs in content}
    if wrong := [
        name for name, value in given.items() if isinstance(value, bool) or not isinstance(value, int | float)
    ]:
        raise InputError(f"{path}: {wrong[0]} is {given[wrong[0]]!r}, expected a number")
    found = SPECIAL[FORMS[kind]] | {names[theirs]: value for theirs, value in given.items()}
    # Positions of RoBERTa are counted from the padding token's id on, which takes a row itself.
    first = found["padding_token"] + 1 if FORMS[kind] == "roberta" else 0
    unsaid = {"segments": 2, "epsilon": 1e-12, "first_position": first}
    return Description(path, kind, unsaid | found)


def read_config(folder: Path | str) -> BertConfig:
    """The encoder that a folder's config.json describes; raises as `read_description` does."""
    found = read_description(folder)
    try:
        return BertConfig.model_validate(found.settings)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{found.path}: {where or 'encoder'}: {problem['msg']}") from None


def check_config(config: BertConfig, found: Description, section: str) -> None:
    """Raises UsageError, naming both values, where a configuration contradicts a folder."""
    check_settings({name: getattr(config, name) for name in DECIDED}, found, section)


def check_settings(settings: Mapping[str, Any], found: Description, section: str) -> None:
    """As `check_config`, for those settings that were given. Without a table of token types type 0 counts."""
    for name in DECIDED:
        ours, theirs = settings.get(name, found.settings[name]), found.settings[name]
        if ours != theirs and not (name == "segments" and ours == 0):
            raise UsageError(
                f"{section}.{name} is {ours}, {found.path} says {theirs}: leave the setting out, "
                "or give the folder of the encoder that it describes"
            )


def _kind(path: Path, content: Mapping[str, Any]) -> str:
    kind = str(content.get("model_type") or _kind_of_class(content.get("architectures")))
    if kind not in FORMS:
        raise UnsupportedError(f"{path} describes an encoder of type {kind!r}, this network can be {list(FORMS)}")
    return kind


def _kind_of_class(names: Any) -> str:
    """Early folders name the class alone: `XLMRobertaModel`; the earliest nothing, and all are BERT."""
    if not isinstance(names, list) or not names:
        return "bert"
    plain = str(names[0])
    classes = {"XLMRoberta": "xlm-roberta", "Roberta": "roberta", "Camembert": "camembert", "Electra": "electra"}
    fitting = (kind for start, kind in (classes | {"Bert": "bert"}).items() if plain.startswith(start))
    return next(fitting, plain)


def _check_supported(path: Path, content: Mapping[str, Any]) -> None:
    for name, values in ONLY.items():
        if content.get(name, values[0]) not in values:
            raise UnsupportedError(f"{path} has {name} {content[name]!r}, this network has {values[0]!r} alone")
    width = content.get("embedding_size", content.get("hidden_size"))
    if width != content.get("hidden_size"):
        raise UnsupportedError(
            f"{path} has embeddings of width {width} and states of {content.get('hidden_size')}, in this network "
            "both are equal"
        )
