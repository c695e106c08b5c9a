"""Where the encoders of a run come from: their folders decide what is not configured, and random weights are asked for.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.errors import MerError, UsageError
from mer_export.layers.bert.folder import Description, check_settings, find_config, read_description
from train.accumulation import Accumulation

RANDOM = "random"
"""In place of a file or folder: the encoder starts from random weights, and that is meant."""

CROSS_ENTROPY = "cross-entropy of one class"
"""The loss that a balance of classes goes with, in words."""

UNKNOWN = ("[UNK]", "<unk>")
"""The usual names of the token for what is unknown."""


@dataclass(frozen=True)
class Source:
    """One encoder: the setting of `protocol:` that says where its weights are, and the section of `model:`."""

    setting: str
    value: str | None
    section: str
    form: str | None = None
    """The setting of `model:` that says whether it is a BERT or a RoBERTa, where there is one."""
    own: tuple[str, ...] = ()
    """What of the section is the system's to say, not the folder's."""

    @property
    def path(self) -> str | None:
        """The file or folder to load; None where there is none."""
        return None if self.value == RANDOM else self.value


class Settings(BaseModel):
    """A `protocol:` section."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def sources(self) -> tuple[Source, ...]:
        """The encoders that may start from pre-trained weights."""
        return ()

    @property
    def beside(self) -> tuple[str, ...]:
        """Splits that training reads beside those that it trains on."""
        return ()

    @property
    def accumulation(self) -> Accumulation:
        """When gradients are applied."""
        return Accumulation()

    @property
    def rate_rules(self) -> dict[str, Any]:
        """The rules of its own that set the learning rate by a `metric`, the more the better, of a `split`; by name."""
        return {}

    def class_loss(self, kind: str) -> str:
        """What predictions are trained by, in words, for a task of this kind: `CROSS_ENTROPY` where it is that."""
        return CROSS_ENTROPY if kind == "classification" else f"the loss of a {kind} task"

    @property
    def files(self) -> dict[str, str]:
        """The files and folders beside the data that it names, by setting."""
        return {s.setting: s.path for s in self.sources if s.path is not None}

    @property
    def data_files(self) -> dict[str, str]:
        """Files and folders that it names relative to the data, by setting."""
        return {}


def from_folders(model: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The `model:` section as it was written, completed with what the folders of its encoders say.

    Folders that do not exist are left for training to ask for: a finished bundle needs them no longer.

    Raises:
        InputError: a folder whose config.json is damaged.
        UnsupportedError: an encoder that the network cannot be.
        UsageError: the section contradicts a folder; names both values.
    """
    found = dict(model)
    for source in settings.sources:
        section = found.get(source.section, {})
        if source.path is not None and find_config(source.path) and isinstance(section, Mapping):
            found |= _completed(found, section, source, read_description(source.path))
    return found


def check_sources(settings: Settings, model: Any, start: bool) -> None:
    """Raises UsageError for an encoder that would silently start from random weights, and for a file nobody reads.

    Args:
        settings: the checked `protocol:` section.
        model: the checked `model:` section.
        start: whether weights are drawn; False where a bundle brings them.
    """
    used = {s.setting for s in settings.sources if s.section in model.pretrained}
    for source in settings.sources:
        name = f"protocol.{source.setting}"
        if start and source.value is None and source.setting in used:
            raise UsageError(
                f"{name} is not set, and this model starts from a pre-trained encoder: set it to the encoder's file or "
                f"folder, or to {RANDOM} if random weights are meant"
            )
        if source.path is not None and source.setting not in used:
            raise UsageError(f"{name} is {source.path}, and this model has no such encoder: leave {name} out")


def describe_sources(settings: Settings, model: Any, start: bool) -> dict[str, str]:
    """Where each encoder of a model comes from, in words, and which are missing; arguments as of `check_sources`."""
    used = [s for s in settings.sources if s.section in model.pretrained]
    return {f"protocol.{s.setting}": _where_from(s, start) for s in used}


def _where_from(source: Source, start: bool) -> str:
    if not start:
        return "of the bundle that the run starts from"
    if source.value is None:
        return f"missing: set it to the encoder's file or folder, or to {RANDOM}"
    if source.path is None:
        return "random weights"
    return source.path if Path(source.path).exists() else f"missing: {source.path} does not exist"


def _completed(
    model: Mapping[str, Any], section: Mapping[str, Any], source: Source, found: Description
) -> dict[str, Any]:
    check_settings(section, found, f"model.{source.section}")
    known = {**found.settings, **_special_tokens(found)}
    settings = {name: value for name, value in known.items() if name not in source.own}
    changed: dict[str, Any] = {source.section: settings | dict(section)}
    if source.form is None:
        return changed
    if (form := model.get(source.form, found.form)) != found.form:
        raise UsageError(
            f"model.{source.form} is {form}, {found.path} says {found.kind}: give the folder of a {form} encoder"
        )
    return changed | {source.form: form}


def _special_tokens(found: Description) -> dict[str, int]:
    """What the folder's tokenizer says; nothing where it has none that can be read."""
    try:
        return special_tokens(TextTokenizer.load(found.path.parent))
    except MerError:
        return {}


def special_tokens(tokenizer: TextTokenizer) -> dict[str, int]:
    """The settings of an encoder that say what stands around a text and for what is unknown."""
    first, last = tokenizer.encode("").tolist()
    named = (tokenizer.library.token_to_id(name) for name in UNKNOWN)
    unknown = next((i for i in named if i is not None and tokenizer.dictionary is None), None)
    ids = {"first_token": first, "last_token": last, "unknown_token": unknown}
    return {name: i for name, i in ids.items() if i is not None}
