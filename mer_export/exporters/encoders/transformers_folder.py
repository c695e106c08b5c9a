"""An encoder from a folder of the `transformers` package: its preprocessing read, its weights checked, exported."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mer_export.bundle import WEIGHTS, Bundle, sha256
from mer_export.checkpoints import read_checkpoint, usual_state, weight_files
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.data.tokens.tokenizer_json import text_files, tokens_sha256
from mer_export.encoders.config import Pooling, Provenance
from mer_export.encoders.encoder import TOKENIZER, manifest_of
from mer_export.encoders.inputs import PictureInput, SoundInput, TextInput
from mer_export.encoders.transformers import SYSTEM
from mer_export.encoders.transformers.config import TransformersConfig, depth, hidden, sizes_said
from mer_export.encoders.transformers.kinds import KINDS, Kind
from mer_export.encoders.transformers.weights import load_folder
from mer_export.errors import InputError, MerError, UnsupportedError, UsageError
from mer_export.registry import first_problem
from mer_export.untrusted.json_files import read_json, read_json_object
from mer_export.weights import save_weights

if TYPE_CHECKING:
    from mer_export.encoders.transformers.network import TransformersEncoder

DESCRIPTION, PREPROCESSING = "config.json", "preprocessor_config.json"
POOLING_CONFIG, MODULES, LENGTH = "1_Pooling/config.json", "modules.json", "sentence_bert_config.json"
"""Where `sentence-transformers` says how it pools, whether it brings vectors to unit length, and where it cuts."""
POOLING_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
STEPS = ("Transformer", "Pooling", "Normalize")
"""Classes of the steps in its list of modules that are done here."""
LONGEST = 512
"""Tokens that a sentence may have, where neither network nor request says fewer."""
OFFSET = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2}
"""Positions before the first one that a token has."""
READ = {"text": ("longest", "buckets"), "waveform": ("window", "buckets"), "log_mel": ("window",), "picture": ()}
"""What a request may say of lengths, by what is read."""
OPTIONS = {"window": "--window", "longest": "--longest", "buckets": "--length"}
"""What the command calls it."""
WINDOW = 10.0
"""Seconds of a waveform that are read together where nobody says otherwise."""
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of its filters."""


@dataclass(frozen=True)
class Wanted:
    """What a request says of an encoder; None leaves it to the folder, or to what is usual."""

    layers: Sequence[int] = ()
    """In the order in which they stand in the features."""
    stack: bool = False
    """A vector for each layer, one below the other, where they would stand side by side in one."""
    pooling: Pooling | None = None
    unit: bool | None = None
    every: int = 1
    window: float | None = None
    longest: int | None = None
    buckets: Sequence[int] = ()
    name: str | None = None
    revision: str = ""
    licence: str = ""


def import_folder(source: Path, out: Path, wanted: Wanted = Wanted(), force: bool = False) -> Bundle:
    """Writes the bundle of an encoder: configuration, weights in float32 and, of text, its tokenizer; no variant yet.

    Args:
        source: a folder with config.json, weights and, by what it reads, preprocessor_config.json or a tokenizer.
        out: the new bundle.
        wanted: what differs from what the folder says.
        force: replace an existing bundle.

    Raises:
        InputError: files are missing or damaged.
        UnsupportedError: another kind of network, or preprocessing that is not done here.
        UsageError: weights that do not fit config.json, or a layer that is not there.
        NotAvailableError: `transformers`, or for text `tokenizers`, is missing.
    """
    config, model = read_folder(source, wanted)
    tokenizer = text_files(source) if isinstance(config.input, TextInput) else {}
    bundle = Bundle.create(out, manifest_of(SYSTEM, config), force)
    with bundle.commit() as change:
        save_weights(model, change.file(WEIGHTS))
        for name, file in tokenizer.items():
            shutil.copyfile(file, change.file(f"{TOKENIZER}/{name}"))
    return bundle


def read_folder(source: Path, wanted: Wanted) -> tuple[TransformersConfig, TransformersEncoder]:
    """Configuration and network of a folder; raises as `import_folder`."""
    if not source.is_dir():
        raise InputError(f"{source} is not a folder: give one with {DESCRIPTION} and weights")
    described = read_json_object(source / DESCRIPTION)
    files = weight_files(source)
    with _building(source / DESCRIPTION):
        config = _config(source, described, files, wanted)
        from mer_export.encoders.transformers.network import TransformersEncoder

        model = TransformersEncoder(config).eval()
    load_folder(model, usual_state(read_checkpoint(source)), str(source))
    return config, model


@contextmanager
def _building(file: Path) -> Iterator[None]:
    """Names the file where a value in it is of another kind than the package writes: it raises anything then."""
    try:
        yield
    except (MerError, ImportError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{file} does not describe a network that can be built: {reason}") from error


def _config(source: Path, described: dict[str, Any], files: Sequence[Path], wanted: Wanted) -> TransformersConfig:
    kind, network = _network(described, source)
    size = hidden(network)
    layers = tuple(wanted.layers) or (depth(network),)
    vectors = len(layers) if wanted.stack else 1
    pooling, unit = _pooling(source, KINDS[kind], wanted)
    config: TransformersConfig = SYSTEM.parse(
        {
            "kind": kind,
            "network": network,
            "input": _input(source, kind, network, wanted),
            "layers": layers,
            "pooling": pooling,
            "unit": unit,
            "every": wanted.every,
            "width": size * len(layers) // vectors,
            "vectors": vectors,
            "source": Provenance(
                name=wanted.name or source.resolve().name,
                revision=wanted.revision,
                sha256=digest(files),
                licence=wanted.licence,
            ),
        }
    )
    return config


def _network(described: dict[str, Any], source: Path) -> tuple[str, dict[str, Any]]:
    name = described.get("model_type")
    if name not in KINDS:
        raise UnsupportedError(f"{source / DESCRIPTION} describes a {name!r}, encoders are taken of {list(KINDS)}")
    kind = KINDS[name]
    values = described.get(kind.section) if kind.section else described
    if not isinstance(values, dict):
        raise InputError(f"{source / DESCRIPTION} has no {kind.section}")
    # Programs that a folder names are never loaded; where weights lie is said by their own files.
    left = ("auto_map", "architectures", "_name_or_path", "dtype", "torch_dtype", "transformers_version", "id2label")
    if not sizes_said(values):
        from mer_export.encoders.transformers.network import package_class

        # Of a part of a network the package writes what differs from its defaults, and nothing else.
        said = {n: v for n, v in values.items() if n != "model_type"}
        values = package_class(name).config_class(**said).to_dict()
    return name, {n: v for n, v in values.items() if n not in (*left, "label2id")}


def _input(source: Path, kind: str, network: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    form = KINDS[kind].form
    for name, option in OPTIONS.items():
        if getattr(wanted, name) not in (None, (), []) and name not in READ[form]:
            raise UsageError(f"{option} says nothing of a {kind}, which reads a {form.replace('_', ' ')}: leave it out")
    file = source / PREPROCESSING
    said = read_json_object(file) if form != "text" and file.is_file() else {}
    try:
        if form == "text":
            return _text(source, kind, network, wanted).model_dump()
        if form == "picture":
            return _picture(file, said, network, KINDS[kind]).model_dump()
        return _sound(file, said, network, form, wanted).model_dump()
    except ValidationError as error:
        raise UsageError(f"{source}: {first_problem(error)}") from None


def _text(source: Path, kind: str, network: dict[str, Any], wanted: Wanted) -> TextInput:
    tokenizer = TextTokenizer.load(source)
    positions = network.get("max_position_embeddings", LONGEST) - OFFSET.get(kind, 0)
    usual = min(positions, LONGEST)
    if (source / LENGTH).is_file():
        usual = min(usual, int(read_json_object(source / LENGTH).get("max_seq_length") or usual))
    longest = usual if wanted.longest is None else wanted.longest
    if wrong := [n for n in (longest, *wanted.buckets) if not 3 <= n <= positions]:
        raise UsageError(f"a {kind} of this size reads 3..{positions} tokens, not {wrong[0]}")
    if tokenizer.size > network["vocab_size"]:
        raise InputError(f"{source}: the tokenizer has {tokenizer.size} tokens, the network {network['vocab_size']}")
    return TextInput(
        vocabulary=network["vocab_size"],
        longest=longest,
        buckets=tuple(wanted.buckets),
        tokenizer=tokens_sha256(source),
    )


def _sound(file: Path, said: dict[str, Any], network: dict[str, Any], form: str, wanted: Wanted) -> SoundInput:
    rate = int(said.get("sampling_rate", 16000))
    if form == "log_mel":
        shape = {"n_fft": 400, "hop_length": 160, "dither": 0.0, "padding_value": 0.0}
        wrong = [f"{n} {said[n]}" for n, v in shape.items() if said.get(n, v) != v]
        if wrong:
            raise UnsupportedError(f"{file} asks for {wrong[0]}, spectrograms have {shape} here")
        most = network["max_source_positions"] * 320 / rate
        window = most if wanted.window is None else wanted.window
        if not 0 < window <= most:
            raise UsageError(f"the window of this network is at most {most:g} s, not {window:g}")
        mels = network["num_mel_bins"]
        return SoundInput(form="log_mel", rate=rate, window=window, hop=320, field=400, mels=mels)
    strides = network.get("conv_stride", (5, 2, 2, 2, 2, 2, 2))
    kernels = network.get("conv_kernel", (10, 3, 3, 3, 3, 2, 2))
    field, hop = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field, hop = field + (kernel - 1) * hop, hop * stride
    return SoundInput(
        form="waveform",
        rate=rate,
        window=WINDOW if wanted.window is None else wanted.window,
        hop=hop,
        field=field,
        normalise=bool(said.get("do_normalize", False)),
        buckets=tuple(wanted.buckets),
    )


def _picture(file: Path, said: dict[str, Any], network: dict[str, Any], kind: Kind) -> PictureInput:
    side = network.get("image_size", 224)
    crop = said.get("crop_size", side)
    high, wide = (side, side) if isinstance(side, int) else side
    if off := [n for n in ("do_resize", "do_rescale") if said.get(n) is False]:
        raise UnsupportedError(f"{file} says {off[0]} false, and pictures of any size in 0..255 are read here")
    if isinstance(crop, dict) and (crop.get("height"), crop.get("width")) != (high, wide):
        raise UnsupportedError(f"{file} cuts pictures to {crop}, the network reads {high} x {wide}")
    factor = said.get("rescale_factor", 1 / 255)
    if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise UnsupportedError(f"{file} scales pictures by {factor}, they are scaled by 1/255 here")
    if (filtered := said.get("resample", 3)) not in RESAMPLE:
        raise UnsupportedError(f"{file} resamples by filter {filtered}, those that are known are {RESAMPLE}")
    plain = said.get("do_normalize") is False
    return PictureInput(
        height=high,
        width=wide,
        resize=_resized(file, said.get("size"), (high, wide), kind),
        resample=RESAMPLE[filtered],  # type: ignore[arg-type]
        mean=(0.0, 0.0, 0.0) if plain else tuple(said.get("image_mean", (0.5, 0.5, 0.5))),
        std=(1.0, 1.0, 1.0) if plain else tuple(said.get("image_std", (0.5, 0.5, 0.5))),
    )


def _resized(file: Path, size: Any, read: tuple[int, int], kind: Kind) -> tuple[int, ...]:
    """What pictures are brought to: the shorter side, or height and width; those that the network reads unless said."""
    match size:
        case None:
            return read
        case int():
            return (size,) if kind.shorter else (size, size)
        case {"shortest_edge": int(shorter)}:
            return (shorter,)
        case {"height": int(high), "width": int(wide)}:
            return high, wide
    raise UnsupportedError(f"{file} brings pictures to the size {size}: say its shortest_edge, or height and width")


def _pooling(source: Path, kind: Kind, wanted: Wanted) -> tuple[Pooling, bool]:
    """As asked for, as a folder of `sentence-transformers` says, or as is usual for what is read."""
    said: Pooling | None = None
    if (source / POOLING_CONFIG).is_file():
        modes = [n for n, on in read_json_object(source / POOLING_CONFIG).items() if on is True and "mode" in n]
        if len(modes) != 1 or modes[0] not in POOLING_MODES:
            raise UnsupportedError(
                f"{source / POOLING_CONFIG} pools by {modes}, one of {list(POOLING_MODES)} is needed"
            )
        said = POOLING_MODES[modes[0]]
        if wanted.pooling not in (None, said):
            raise UsageError(
                f"pooling is {wanted.pooling}, {source / POOLING_CONFIG} says {said}: pass --pooling {said}"
            )
    usual: Pooling = "first" if kind.form == "picture" else "mean"
    pooling = wanted.pooling or said or usual
    normalised = "Normalize" in _steps(source / MODULES) and pooling != "none"
    return pooling, normalised if wanted.unit is None else wanted.unit


def _steps(file: Path) -> list[str]:
    """The classes of the steps by which `sentence-transformers` makes a vector; none where it has no list of them."""
    listed = read_json(file) if file.is_file() else []
    if not isinstance(listed, list) or not all(isinstance(m, dict) and isinstance(m.get("type"), str) for m in listed):
        raise InputError(f"{file} is no list of modules, each with its type: get it again")
    steps = [m["type"].rpartition(".")[2] for m in listed]
    if other := next((s for s in steps if s not in STEPS), None):
        raise UnsupportedError(
            f"{file} has a step {other} behind the network, those that are done here are {list(STEPS)}: take it out of "
            "that list to have the vectors without it"
        )
    return steps


def digest(files: Sequence[Path]) -> str:
    """The SHA-256 of a file; of several that of theirs, one after the other."""
    if len(files) == 1:
        return sha256(files[0])
    return hashlib.sha256("".join(sha256(f) for f in files).encode()).hexdigest()
