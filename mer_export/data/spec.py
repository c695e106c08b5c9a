"""The `data:` section of a configuration: which files hold what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticUndefined

from mer_export.contract import Contract
from mer_export.errors import InputError
from mer_export.registry import first_problem
from mer_export.untrusted.file_state import States
from mer_export.untrusted.places import Allowed, Reach
from mer_export.untrusted.tables import UTF8

Shape = Literal["dialogue", "utterance", "context", "packed"]

EARLIER = frozenset({"dataset", "emotions", "faces", "table", "packing"})
"""Fields that no one says together: with all of them a section is one that an earlier version wrote in full."""


EARLIER_SPEAKERS = ("speakers", 2)
"""What sections written in full say where nothing was said."""


def written_in_full(values: Mapping[str, Any]) -> bool:
    """Whether a data section is one of those that list every field, and so do not tell what was said."""
    return values.keys() >= EARLIER


class Section(BaseModel):
    """Part of a configuration that lies over what the data say of themselves.

    A field that is said holds, `null` or an empty list as well: it switches off what would be inherited. So a copy of a
    section lists what was said, and nothing else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _what_was_said(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {n: v for n, v in written(self).items() if n in self.model_fields_set}

    @model_validator(mode="before")
    @classmethod
    def _null_is_empty(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {n: cls._empty(n) if v is None and n in cls.model_fields else v for n, v in values.items()}

    @classmethod
    def _empty(cls, name: str) -> Any:
        """What stands for nothing in a field: None, or an empty collection or section."""
        default = cls.model_fields[name].get_default(call_default_factory=True)
        return type(default)() if isinstance(default, tuple | dict | Section) else None

    @classmethod
    def without_defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a section written in full that differ from the defaults."""
        found = {}
        for name, value in values.items():
            field = cls.model_fields.get(name)
            default = field.get_default(call_default_factory=True) if field else PydanticUndefined
            part = SECTIONS.get(name)
            value = part.without_defaults(value) if part and isinstance(value, Mapping) else value
            if (name == "context" and value is not None) or value not in (None, [], {}, default):
                found[name] = value
        return found


NUMBER_TABLES = (".csv", ".tsv")


class ArraySource(BaseModel):
    """Feature vectors, or sequences of them, aligned to the rows of an utterance table.

    `file` (npz, npy, or a table of numbers in csv or tsv, relative to the data directory) may hold `{split}`, which
    stands for the name of each split, or `{clip}`, which stands for the cell of that column: a file per utterance.
    `columns` names columns of a table of numbers, by default all of its features, or without a file of the utterance
    table itself: names, a prefix (`AU*`) or a range (`f0:f9`), one or a list of them.
    `only_with_split` names the split columns these features may be used with: features of a network that was trained
    with the labels of one split say so here, and are refused with any other.

    An array may hold sequences: `offsets` names the array of the same file that says where each row's steps begin and
    the last one ends, a third dim does without. `column` is the column of the table with the row
    of this source alone; `keys` names an array (of the same file) of strings that the column is then looked up in, or
    the column of a table of numbers with the name of the utterance that a row belongs to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str | None = None
    columns: str | tuple[str, ...] = ()
    array: str | None = None
    offsets: str | None = None
    keys: str | None = None
    column: str | None = None
    only_with_split: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _file_or_columns(self) -> ArraySource:
        if (self.file is None) != bool(self.columns) and not (self.of_table and self.columns):
            raise ValueError("name either a file or columns of the table")
        if self.file is None and (self.keys or self.column):
            raise ValueError("keys and column are of a file: leave them out beside columns")
        if (self.columns and (self.array or self.offsets)) or (self.of_table and (self.array or self.offsets)):
            raise ValueError("array and offsets are of a file of arrays: leave them out beside columns")
        return self

    @property
    def of_table(self) -> bool:
        """Whether the file is a table of numbers."""
        return self.file is not None and self.file.endswith(NUMBER_TABLES)


class Extractor(BaseModel):
    """What made features: its name, and the SHA-256 of its weights where there are some."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class EmotionData(Section):
    """Emotion words, and which part of the authors' utterance sets is read (MTEE).

    `zsl` and `fsl` are the published indices. On CMU-MOSEI `zsl` takes the label and all samples that have it out of
    every split; on IEMOCAP it adds the samples of one of the nine finer classes, and that label, to every split. `fsl`
    keeps all but few of the training samples that have a label (CMU-MOSEI), counted after `zsl`.
    """

    vectors: str | None = None
    """File of word vectors, relative to the data directory."""
    capitalise: bool = False
    """Look words up with a capital first letter (the original's --cap)."""
    zsl: int | None = Field(None, ge=0)
    fsl: int | None = Field(None, ge=0)
    balanced: bool = False
    """With `fsl` keep few samples without the label too (the original's fine-tuning set)."""
    old: bool = False
    """With `fsl` a split `old` beside the others: the training samples without the label, for `protocol.rehearsal`."""
    aligned: bool = True
    steps: int = Field(50, ge=1)
    """The original's --data-seq-len: which files of CMU-MOSI and which dataset cache are read; it cuts nothing."""


class FaceData(Section):
    """Face crops of utterances (FacialMMT), which are read from image files."""

    images: bool = False
    """Whether samples have them."""
    column: str | None = None
    """Column of an utterance table with the folder of an utterance's images, taken in order of their names."""
    size: int = Field(224, ge=1)
    replace: str = ""
    """The beginning of the paths in the data's lists, which were made on another machine."""
    root: str | None = None
    """What stands in its place; None takes the paths relative to the data directory."""


class ContextData(Section):
    """Utterances with the sentence vectors of their neighbours, and with tokens (tab)."""

    size: int = Field(3, ge=0)
    """Neighbours on each side."""
    align: Literal["left", "centred"] = "left"
    """Where the window of an utterance near the beginning is cut: `left` moves it to slot 0, as the original's files
    have it, `centred` leaves the missing slots empty, as its description says."""
    width: int | None = Field(None, ge=1)
    """Width of a sentence vector; None takes what the data hold."""
    vectors: ArraySource | None = None
    """One sentence vector per row of an utterance table."""
    fold: int | None = Field(None, ge=0, le=9)
    """Run of the cross-validation over sessions; None tests on session 5 and validates on a tenth of the others."""
    seed: int = Field(2022, ge=0, lt=1 << 32)
    """Of the order of the folds and of the validation sample."""
    max_text: int = Field(512, ge=2)
    max_audio: int = Field(2048, ge=2)
    """Tokens that are read of each utterance; nothing marks the cut."""
    lower: bool = True
    """Lower-case a transcript before it is tokenized."""
    encoder: str | None = None
    """Folder of a sentence encoder, for utterances that come with a sentence and no vector."""
    speech: str | None = None
    """Folder of a speech tokenizer, for utterances that come as wav files."""


SECTIONS: dict[str, type[Section]] = {"emotions": EmotionData, "faces": FaceData, "context": ContextData}


class DataSpec(Section):
    """How to read a data set. The defaults read every format that describes itself.

    `dataset` chooses where a directory holds two of the authors' data sets. Everything from `table` on describes an
    utterance table (see docs/data.md).
    """

    format: str = "auto"
    dataset: Literal["iemocap", "meld", "mosei", "mosei_emo", "mosei_senti", "mosi", "sims"] | None = None
    unit: Literal["dialogue", "utterance"] = "dialogue"
    """What one sample is: a dialogue of utterance vectors, or one utterance with a sequence per modality."""
    modalities: tuple[Literal["text", "audio", "vision"], ...] = ()
    """Of the files of FacialMMT read these alone; none means all."""
    emotions: EmotionData = EmotionData()
    trim_zeros: bool = False
    """Leave out the zero rows before and behind an utterance, which the authors' arrays are padded with. The original
    reads them as data: answers change."""
    faces: FaceData = FaceData()
    table: str | None = None
    """Utterance table (csv, tsv, parquet); `{split}` in the name means one file per split."""
    encoding: str = UTF8
    """Of the table where it is text, such as cp1252 or gbk."""
    separator: str | None = Field(None, pattern=r'^(\t|[^\w\s"])$')
    """Between the cells of a table; None finds out."""
    splits: tuple[str, ...] = ()
    """Splits to read, in this order; needed where `table` holds `{split}`."""
    dialogue: str | tuple[str, ...] | None = None
    """Column of the dialogue, or several that make one together: season, episode, scene."""
    order: str | None = None
    """Column to sort a dialogue's utterances by; None keeps the order of the table."""
    utterance: str | None = None
    speaker: str | None = None
    label: str | None = None
    score: str | None = None
    """Column of numbers that a regression predicts."""
    label_columns: tuple[str, ...] = ()
    """Columns of 1, 0 or nothing where several labels may hold; their names are the labels."""
    tokenizer: str | None = None
    """Folder of a text tokenizer (see docs/data.md), its tokenizer.json or its vocab.txt, that turns `sentence` into
    tokens."""
    context: ContextData | None = None
    """Given for models that read an utterance's tokens and the sentence vectors of its neighbours."""
    packing: Literal["roberta", "bert"] | None = None
    """Given, the text of an utterance is its whole dialogue, packed so; needs `tokenizer`."""
    split: str | None = None
    sentence: str | None = None
    recording: str | None = None
    """Column of files of sound or pictures, relative to the data directory."""
    start: str | None = None
    """Column of the second (or h:mm:ss) of its recording at which an utterance begins."""
    end: str | None = None
    row: str | None = None
    """Column with the row in the arrays; None means the position in the table."""
    speakers: int | None = Field(None, ge=1)
    """How many are told apart by name; later ones in a dialogue share the last index. None: as many as the model knows,
    and all of them where there is no model."""
    label_names: tuple[str, ...] = ()
    """Class names in index order, or the names of integer labels."""
    text: tuple[ArraySource, ...] = ()
    audio: tuple[ArraySource, ...] = ()
    vision: tuple[ArraySource, ...] = ()
    inputs: dict[str, ArraySource] = Field(default_factory=dict)
    """Arrays that go into the model as they are, by input: token ids, context windows, logits of faces."""
    extractors: dict[str, Extractor] = Field(default_factory=dict)
    """What made the features, by input: a name, or a name and the SHA-256 of its weights."""
    _allowed: Allowed = PrivateAttr(default_factory=Allowed)
    _known: int | None = PrivateAttr(default=None)
    _bound: tuple[str | None, States | None] = PrivateAttr(default=(None, None))
    # Private, as no file may say where paths lead, nor what the model is.

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, values: Any) -> Any:
        """Sections were once written in full, so their empty fields say nothing; only `context` had recordings."""
        if not isinstance(values, Mapping):
            return values
        if written_in_full(values):
            values = cls.without_defaults({n: v for n, v in values.items() if (n, v) != EARLIER_SPEAKERS})
        context = values.get("context")
        if isinstance(context, Mapping) and "recording" in context:
            own = {n: v for n, v in context.items() if n != "recording"}
            values = {"recording": context["recording"], **values, "context": own}
        return values

    @field_validator("text", "audio", "vision", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value

    @property
    def sources(self) -> dict[str, tuple[ArraySource, ...]]:
        """The modalities that have arrays."""
        return {m: s for m, s in (("text", self.text), ("audio", self.audio), ("vision", self.vision)) if s}

    @property
    def switched_off(self) -> frozenset[str]:
        """The modalities that are said to be none, whatever the data hold."""
        return frozenset(m for m in ("text", "audio", "vision") if m in self.model_fields_set and not getattr(self, m))

    @property
    def dialogue_columns(self) -> tuple[str, ...]:
        """The columns that a dialogue has in common."""
        return (self.dialogue,) if isinstance(self.dialogue, str) else self.dialogue or ()

    @property
    def arrays(self) -> list[tuple[str, ArraySource]]:
        """Everything that comes from an array file, with what it is."""
        found = [(m, s) for m, sources in self.sources.items() for s in sources] + list(self.inputs.items())
        vectors = self.context.vectors if self.context else None
        return found + ([("context", vectors)] if vectors else [])

    @property
    def shape(self) -> Shape:
        """What samples are made of the utterances of an open source."""
        if self.context is not None:
            return "context"
        return self.unit if self.packing is None else "packed"

    def for_model(self, contract: Contract) -> DataSpec:
        """This section in units of the model, for as many speakers as it knows."""
        found = self.in_units_of(contract).model_copy()
        found._known = next((s.below for s in contract.inputs if s.name == "speaker"), None)
        return found

    def in_units_of(self, contract: Contract) -> DataSpec:
        """This section, with the utterance as its unit unless a model of this contract takes dialogues."""
        dialogues = "utterances" in contract.sequence_dims
        return self if dialogues else self.model_copy(update={"unit": "utterance"})

    @property
    def told_apart(self) -> int | None:
        """How many speakers of a dialogue have an index of their own; None: all of them."""
        return self._known if self.speakers is None else self.speakers

    @property
    def allowed(self) -> Allowed:
        """Where paths may lead that files name; the command line alone says it."""
        return self._allowed

    def allowing(self, allowed: Allowed) -> DataSpec:
        """The same, and paths may lead there too."""
        found = self.model_copy()
        found._allowed = self._allowed | allowed
        return found

    def beside(self, other: DataSpec) -> DataSpec:
        """The same, with what no file says of `other`: where paths may lead, what its model knows, its tokenizer."""
        found = self.allowing(other._allowed)
        found._known, found._bound = other._known, other._bound
        return found

    @property
    def tokenizer_state(self) -> States | None:
        """That of the files of the tokenizer where it was bound to them (see `tokens.tokenizer.bound`)."""
        path, state = self._bound
        return state if path == self.tokenizer else None

    def with_tokenizer(self, state: States) -> DataSpec:
        """The same, bound to the files of its tokenizer in this state."""
        found = self.model_copy()
        found._bound = self.tokenizer, state
        return found

    def reach(self, data: Path) -> Reach:
        """How far the paths lead that a data set names, `data` being its directory or file."""
        images = (self.faces.root,) if self.faces.root else ()
        return Reach(data if data.is_dir() else data.parent, self._allowed, *images)

    @property
    def folders(self) -> dict[str, str]:
        """The folders beside the data that it names, by field."""
        found = {"tokenizer": self.tokenizer, "faces.root": self.faces.root}
        if self.context is not None:
            found |= {"context.encoder": self.context.encoder, "context.speech": self.context.speech}
        return {name: folder for name, folder in found.items() if folder}

    def over(self, declared: Mapping[str, Any], where: str, home: Path | None = None) -> DataSpec:
        """What data say of themselves, and over it the fields of this section that are said.

        Args:
            declared: the fields.
            where: what declares them.
            home: directory of the data; folders that they name are relative to it.

        Raises:
            InputError: the data say something that is not a field, or name a folder elsewhere.
        """
        try:
            own = DataSpec.model_validate(declared)
        except ValidationError as error:
            raise InputError(f"{where}: {first_problem(error)}") from None
        found = DataSpec.model_validate(_merged(own.model_dump(), self.model_dump())).beside(self)
        if home is None:
            return found
        said, reach = self.folders, Reach(home, self._allowed)
        brought = {n: f for n, f in own.folders.items() if found.folders.get(n) == f != said.get(n)}
        return found._with_folders({n: str(reach.path(f, f"{where}: {n}")) for n, f in brought.items()})

    def _with_folders(self, folders: Mapping[str, str]) -> DataSpec:
        changed: dict[str, Any] = {}
        for name, folder in folders.items():
            section, _, field = name.rpartition(".")
            if section:
                changed[section] = changed.get(section, getattr(self, section)).model_copy(update={field: folder})
            else:
                changed[field] = folder
        return self.model_copy(update=changed)


def _merged(own: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """`said` over `own`, section by section; an empty section replaces the whole."""
    found = dict(own)
    for name, value in said.items():
        inherited = own.get(name)
        # What made one input says nothing of the others.
        both = name in (*SECTIONS, "extractors") and value and inherited
        found[name] = _merged(inherited, value) if both and isinstance(inherited, Mapping) else value
    return found
