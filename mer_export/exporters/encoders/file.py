"""An encoder from an ONNX or TorchScript file and its recipe: read, tried out, put between our inputs and features."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import TypeAdapter, ValidationError

from mer_export.agreement.error import output_error
from mer_export.agreement.policy import PROOF
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle, Variant
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.example_inputs import random_inputs, repeat
from mer_export.data.samples import Sample
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.data.tokens.tokenizer_json import text_files, tokens_sha256
from mer_export.encoders.config import STATES, EncoderConfig
from mer_export.encoders.encoder import TOKENIZER, manifest_of
from mer_export.encoders.examples import examples
from mer_export.encoders.file import SYSTEM
from mer_export.encoders.file.config import ROLES, FileConfig, FileInput, FileSound, Form, Recipe, Role
from mer_export.encoders.inputs import TextInput
from mer_export.errors import InputError, NotAvailableError, ParityError, UsageError
from mer_export.exporters.encoders.onnx_around import Arrays, OnnxFile, Run
from mer_export.exporters.encoders.transformers_folder import digest
from mer_export.registry import first_problem
from mer_export.untrusted.onnx_files import data_files
from mer_export.untrusted.yaml_files import read_yaml

ENDINGS: dict[str, Form] = {".onnx": "onnx", ".pt": "torchscript", ".pth": "torchscript", ".ts": "torchscript"}
COUNTED = 0.010
"""Seconds by which the sound of a file without a hop is counted: how much of a window is real, and what it weighs."""
PROVEN = 3
"""Items that are asked together and one by one."""


class Foreign(Protocol):
    """A file of somebody else that was opened."""

    path: Path
    names: list[str]
    outputs: list[str]
    """None where the file does not name them."""

    def fixed(self, name: str) -> Sequence[int | None]: ...

    def try_out(self, config: FileConfig, bucket: Bucket, batch: int, arrays: Arrays) -> np.ndarray: ...

    def write(
        self, config: FileConfig, bucket: Bucket, batch: int, shape: Sequence[int], path: Path, beside: Path | None
    ) -> Run: ...


def import_file(source: Path, recipe: Path, out: Path, force: bool = False, trust: bool = False) -> Bundle:
    """Writes the bundle of an encoder: a variant for each length, and of text its tokenizer.

    Args:
        source: the ONNX or TorchScript file.
        recipe: a YAML file as `Recipe` says.
        out: the new bundle.
        force: replace an existing bundle.
        trust: run a TorchScript file that does more than our exports do.

    Raises:
        InputError: a damaged file, or one that does not take what the recipe says.
        UsageError: a recipe that is not one, or contradicts the file.
        UnsupportedError: operators that no runtime brings.
        UntrustedError: a program that does more than our exports, without `trust`.
        ParityError: answers that depend on the batch or on padding.
    """
    said = read_recipe(recipe)
    foreign = _open(source, trust)
    folder = recipe.parent / said.tokenizer if said.tokenizer else None
    takes = _takes(said, foreign)
    values = next(n for n, role in takes.items() if role == "values")
    batch = said.batch or next(iter(foreign.fixed(values)), None) or 0
    draft = _config(said, foreign, takes, folder, _source(said, source))
    config, shape = _measured(draft, said, foreign, batch)
    bundle = Bundle.create(out, manifest_of(SYSTEM, config), force)
    with bundle.commit() as change:
        for name, file in text_files(folder).items() if folder else ():
            shutil.copyfile(file, change.file(f"{TOKENIZER}/{name}"))
        runs: dict[Bucket, Run] = {}
        beside: Path | None = None
        for bucket in config.input.lengths:
            wanted = _variant(config, bucket, batch)
            path = change.file(wanted.model)
            runs[bucket] = foreign.write(config, bucket, batch, shape, path, beside)
            beside = path
            change.add_variant(wanted)
        prove(config, runs, examples(bundle), batch)
    return bundle


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; raises UsageError naming the first wrong value."""
    content = read_yaml(path)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error)}") from None


def _open(source: Path, trust: bool) -> Foreign:
    if source.suffix not in ENDINGS:
        raise UsageError(f"{source} is no encoder file: its name ends in one of {list(ENDINGS)}")
    if not source.is_file():
        raise InputError(f"{source} does not exist")
    if ENDINGS[source.suffix] == "onnx":
        return OnnxFile(source)
    try:
        from mer_export.exporters.encoders.torchscript_around import TorchScriptFile
    except ImportError:
        raise NotAvailableError(f"{source} is a program of PyTorch, which is not installed here") from None
    return TorchScriptFile(source, trust)


def _source(said: Recipe, source: Path) -> dict[str, Any]:
    files = [source]
    if ENDINGS[source.suffix] == "onnx":
        files += [source.parent / name for name in data_files(source)]
    found = digest(files)
    if said.source.sha256 not in ("", found):
        raise UsageError(f"{source} has SHA-256 {found}, the recipe says {said.source.sha256}: it is another file")
    return said.source.model_dump() | {"sha256": found}


def _takes(said: Recipe, foreign: Foreign) -> dict[str, Role]:
    """What each input of the file is given: as the recipe says, else by its usual name, the one left the values."""
    if unknown := [n for n in said.takes if n not in foreign.names]:
        raise UsageError(f"takes names {unknown[0]!r}, the inputs of {foreign.path} are {foreign.names}")
    takes: dict[str, Role] = {n: (ROLES | said.takes).get(n, "values") for n in foreign.names}
    values = [n for n, role in takes.items() if role == "values"]
    if len(values) != 1:
        raise UsageError(f"{foreign.path} has the inputs {foreign.names}: say what each is given in takes")
    return takes


def _config(
    said: Recipe, foreign: Foreign, takes: Mapping[str, Role], tokenizer: Path | None, source: dict[str, Any]
) -> FileConfig:
    """The configuration as far as it is known before the file ran: it may be wider, or pool itself."""
    values = next(n for n, role in takes.items() if role == "values")
    heard = _input(said, foreign.fixed(values), takes, tokenizer)
    if foreign.outputs:
        output = said.output or foreign.outputs[0]
        if output not in foreign.outputs:
            raise UsageError(f"output is {output!r}, those of {foreign.path} are {foreign.outputs}")
    else:
        output = said.output or "0"
    try:
        return FileConfig(
            form=ENDINGS[foreign.path.suffix],
            input=heard,
            takes=dict(takes),
            output=output,
            pooling=said.pooling or "mean",
            width_first=said.width_first,
            unit=said.unit,
            every=said.every,
            width=1,
            source=source,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        raise UsageError(f"recipe: {first_problem(error)}") from None


def _input(said: Recipe, fixed: Sequence[int | None], takes: Mapping[str, Role], tokenizer: Path | None) -> Any:
    """What the recipe says of its input, completed by the sizes that the file declares."""
    values = dict(said.input)
    kind, last = values.get("kind"), fixed[-1] if fixed else None
    if kind == "text":
        if tokenizer is None:
            raise UsageError("a text encoder needs its tokenizer: say its folder in tokenizer")
        values.setdefault("vocabulary", TextTokenizer.load(tokenizer).size)
        values["tokenizer"] = tokens_sha256(tokenizer)
        if last is not None:
            values = {"longest": last, "buckets": [last]} | values
    elif kind == "sound" and values.get("form") != "log_mel":
        rate = _number(values.setdefault("rate", 16000)) or 1
        if last is not None:
            values.setdefault("window", last / rate)
        values.setdefault("full", not {"mask", "lengths"} & {*takes.values()})
        values.setdefault("channel", len(fixed) == 3)
        if "hop" not in values:
            whole = round(_number(values.get("window")) * rate)
            values["hop"] = math.gcd(whole, max(1, round(COUNTED * rate)))
            if last is not None:
                values.setdefault("buckets", [max(1, last // values["hop"])])
        values.setdefault("field", values["hop"])
    try:
        found = TypeAdapter(FileInput).validate_python(values)
    except ValidationError as error:
        raise UsageError(f"recipe: input.{first_problem(error)}") from None
    _check_sizes(found, fixed)
    return found


def _number(value: Any) -> float:
    """A number that a recipe says; 0 for what is none, which is named when the whole input is checked."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return 0.0
    return found if math.isfinite(found) else 0.0


def _check_sizes(found: Any, fixed: Sequence[int | None]) -> None:
    """Raises UsageError where the file declares other sizes than the recipe."""
    sizes = [_inner_sizes(found, bucket) for bucket in found.lengths]
    for wanted in sizes:
        declared = list(fixed[1:])
        if declared and (
            len(declared) != len(wanted) or any(d not in (None, w) for d, w in zip(declared, wanted, strict=True))
        ):
            raise UsageError(f"the file takes items of {declared}, by the recipe they are {wanted}: correct input")


def _inner_sizes(found: Any, bucket: Bucket) -> list[int]:
    """The dims of one item as the file is given it."""
    if isinstance(found, TextInput):
        return [bucket["tokens"]]
    if isinstance(found, FileSound):
        frames = bucket["frames"]
        if found.form == "log_mel":
            return [found.mels, found.specs[0].dims[-1] * frames // found.mels]  # type: ignore[operator]
        size = frames * found.hop + max(0, found.field - found.hop)
        return [1, size] if found.channel else [size]
    sides = [found.height, found.width]
    return [3, *sides] if found.layout == "nchw" else [*sides, 3]


def _measured(draft: FileConfig, said: Recipe, foreign: Foreign, batch: int) -> tuple[FileConfig, Sequence[int]]:
    """The whole configuration, and the shape of what the file gave."""
    bucket = draft.input.lengths[0]
    arrays = random_inputs(SYSTEM.contract(draft), bucket, batch or 2)
    try:
        found = foreign.try_out(draft, bucket, batch, arrays)
    except InputError:
        raise
    except Exception as error:
        # What runs the file raises classes of its own, and an interpreter of it anything.
        reason = str(error).strip().splitlines()[-1][:300]
        raise InputError(f"{foreign.path} does not run on {batch or 2} items as the recipe says: {reason}") from None
    shape = found.shape
    if len(shape) not in (2, 3, 4) or shape[0] != (batch or 2):
        raise UsageError(
            f"{foreign.path} gives {draft.output} of shape {list(shape)} for {batch or 2} items: vectors (batch, "
            "width) or states (batch, steps, width) are needed; where a file takes one batch size alone, say batch"
        )
    pools = len(shape) == 2
    steps_first = (len(shape) == 4 and getattr(draft.input, "layout", "nchw") == "nchw") or said.width_first
    usual = "first" if len(shape) == 3 and draft.input.kind == "picture" else "mean"
    values = draft.model_dump() | {
        "pools": pools,
        "pooling": said.pooling or usual,
        "width": shape[1] if pools or steps_first else shape[-1],
    }
    config: FileConfig = SYSTEM.parse(values)
    _check_steps(config, shape, bucket, foreign.path)
    return config, shape


def _check_steps(config: FileConfig, shape: Sequence[int], bucket: Bucket, path: Path) -> None:
    """Raises UsageError where states are not those of the steps of the recipe."""
    if config.pools or not config.input.steps:
        return
    steps = shape[-1] if config.width_first else shape[1]
    if len(shape) != 3 or steps != bucket[config.input.steps]:
        raise UsageError(
            f"{path} gives {list(shape[1:])} states for {bucket[config.input.steps]} {config.input.steps}: say in "
            "input the hop and field of a state in samples, and width_first where they are (batch, width, steps)"
        )


def _variant(config: FileConfig, bucket: Bucket, batch: int) -> Variant:
    found = Variant(format=config.form, precision="fp32", lengths=bucket, batch=batch, model="", exporter="mer encoder")
    # What shares weights lies in one folder.
    shared = f"variants/{config.form}-fp32/{found.form}.onnx"
    model = shared if config.form == "onnx" else f"variants/{found.name}/model.ts"
    return found.model_copy(update={"model": model, "options": {"weights": config.source.sha256}})


def prove(config: FileConfig, runs: Mapping[Bucket, Run], samples: Sequence[Sample], batch: int) -> None:
    """Holds what a file gives for an item against what it gives beside others, past other padding, and again.

    Raises:
        ParityError: with what changed it, and by how much.
    """
    contract: Contract = SYSTEM.contract(config)
    for bucket, run in runs.items():
        some = [s for s in samples if bucket.holds(s.lengths(contract))][:PROVEN]
        arrays = collate(some, contract, bucket)
        together = _answers(run, arrays, batch)
        if not np.isfinite(together).all():
            raise ParityError(f"{bucket.name}: the file gives values that are not finite for random inputs")
        others = {"other items beside it": _one_by_one(run, arrays, batch)}
        if config.input.steps and not getattr(config.input, "fills", False):
            others["other values in its padding"] = _answers(run, _littered(arrays, config), batch)
            longest = max(runs)
            others[f"the length {longest.name}"] = _answers(runs[longest], collate(some, contract, longest), batch)
        for what, found in others.items():
            _agree(config, some, together, found, what)


def _agree(
    config: EncoderConfig, samples: Sequence[Sample], reference: np.ndarray, found: np.ndarray, what: str
) -> None:
    contract = SYSTEM.contract(config)
    real = [s.lengths(contract) for s in samples]
    rows = [slice(n[config.input.steps]) if _is_sequence(contract) else slice(None) for n in real]
    error = output_error(
        contract.outputs[0].name,
        [reference[i][r] for i, r in enumerate(rows)],
        [found[i][r] for i, r in enumerate(rows)],
        PROOF.atol,
        PROOF.rtol,
    )
    if not error.agrees:
        raise ParityError(f"the file gives an item other features, by {error.size}, with {what}: correct the recipe")


def _is_sequence(contract: Contract) -> bool:
    return contract.outputs[0].name == STATES


def _answers(run: Run, arrays: Arrays, batch: int) -> np.ndarray:
    """The output for all items; a fixed batch is filled up by repeating."""
    items = len(next(iter(arrays.values())))
    size = batch or items
    parts = [run({n: repeat(a[i : i + size], size) for n, a in arrays.items()}) for i in range(0, items, size)]
    return np.concatenate(parts)[:items]


def _one_by_one(run: Run, arrays: Arrays, batch: int) -> np.ndarray:
    items = range(len(next(iter(arrays.values()))))
    return np.concatenate([_answers(run, {n: a[i : i + 1] for n, a in arrays.items()}, batch) for i in items])


def _littered(arrays: Arrays, config: FileConfig) -> Arrays:
    """The arrays with random values where nothing real stands."""
    draw = np.random.default_rng(0)
    if isinstance(config.input, TextInput):
        ids, real = arrays["input_ids"], arrays["tokens_len"]
        padding = np.arange(ids.shape[1]) >= real[:, None]
        return arrays | {"input_ids": np.where(padding, draw.integers(0, config.input.vocabulary, ids.shape), ids)}
    sound, samples = arrays["sound"], arrays["samples"]
    flat = sound.reshape(len(sound), -1)
    noise = draw.standard_normal(flat.shape).astype(np.float32)
    return arrays | {"sound": np.where(np.arange(flat.shape[1]) >= samples, noise, flat).reshape(sound.shape)}
