"""What a caller of the predictor may give for a sample, held against the contract before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mer_export.contract import Contract, TensorSpec
from mer_export.data.dialogues import IMAGES, MODALITIES, READY, name_of
from mer_export.data.samples import Sample
from mer_export.errors import InputError

Given = Sample | Mapping[str, Any]
"""A sample, or a dict of its inputs as arrays or nested lists, with `id` and `units` if they matter."""

ID, UNITS = "id", "units"
KINDS = {"float32": "fiu", "int64": "iu"}
"""Kinds of numbers that an input takes, by its dtype."""
ELSEWHERE = frozenset((*MODALITIES, *READY, "speaker", IMAGES))
"""Inputs of any model: data may hold more of them than one model takes."""
OPTIONAL = frozenset({"gumbel_noise"})
"""Inputs without a modality that are zeros where nobody gives them."""
TOGETHER = ("input_ids", "text_span")
"""Inputs neither of which says anything without the other, in models that take both."""


def checked(samples: Iterable[Given], contract: Contract) -> Iterator[Sample]:
    """Each of `samples` as one that fits the inputs of `contract` by name, kind of numbers and dims.

    A single vector stands for one step or one utterance. Widths and values are checked where samples are padded.

    Raises:
        InputError: it does not fit; the message begins with the id of the sample, which is its number by default.
    """
    if isinstance(samples, Sample | Mapping | str):
        raise InputError(f"samples are a {type(samples).__name__}, expected a list of samples: write [sample]")
    features = {s.name: s for s in contract.features}
    for number, given in enumerate(samples):
        sample = given if isinstance(given, Sample) else _from_dict(given, str(number), contract)
        yield _fitted(sample, features, contract)


def _from_dict(given: Any, name: str, contract: Contract) -> Sample:
    if not isinstance(given, Mapping):
        raise InputError(f"sample {name} is a {type(given).__name__}, expected a Sample or a dict of its inputs")
    name = name_of(given.get(ID), name)
    inputs = {str(n): v for n, v in given.items() if n not in (ID, UNITS) and v is not None}
    known = [s.name for s in contract.features]
    _refuse_others(name, inputs, known, known)
    inputs = {s.name: _array(name, s, inputs[s.name]) for s in contract.features if s.name in inputs}
    sample = numbered(name, inputs, contract)
    units = given.get(UNITS)
    if isinstance(units, str) or not isinstance(units, Iterable | None):
        raise InputError(f"{name}: units are a {type(units).__name__}, expected a list of ids")
    return sample if units is None else replace(sample, units=tuple(map(str, units)))


def numbered(name: str, inputs: Mapping[str, np.ndarray], contract: Contract) -> Sample:
    """A sample of arrays with every dim of their inputs, whose units are called by their number."""
    if contract.unit_dim is None:
        return Sample(name, inputs, (name,))
    count = _rows(inputs, contract)
    return Sample(name, inputs, tuple([f"{name}/{i}" for i in range(1 if count is None else count)]))


def _fitted(sample: Sample, features: Mapping[str, TensorSpec], contract: Contract) -> Sample:
    changed = {}
    for name, given in sample.inputs.items():
        spec = features.get(name)
        if spec is None:
            _refuse_others(sample.id, [name], ELSEWHERE, features)
        elif not _is_array(given) or given.ndim != len(spec.dims) - 1 or given.dtype.kind not in KINDS[spec.dtype]:
            changed[name] = _array(sample.id, spec, given)
    if changed:
        sample = replace(sample, inputs={**sample.inputs, **changed})
    _require(sample, features)
    count = _units(sample, contract)
    if len(sample.units) != count:
        raise InputError(f"{sample.id} has {len(sample.units)} units, its inputs are {count}: give one id for each")
    return sample


def _refuse_others(sample: str, names: Iterable[str], allowed: Iterable[str], features: Iterable[str]) -> None:
    others = sorted(set(names) - set(allowed))
    if others:
        raise InputError(f"{sample}: the model has no input {others[0]!r}, its inputs are {list(features)}")


def _is_array(given: Any) -> bool:
    """Whether numpy knows its kind of numbers already; face images are arrays that are decoded later."""
    return isinstance(getattr(given, "dtype", None), np.dtype)


def _array(sample: str, spec: TensorSpec, given: Any) -> np.ndarray:
    """Numbers of the right kind with all dims of an input; a dim of one that is not given is added."""
    try:
        array = given if _is_array(given) else np.asarray(given)
    except (ValueError, TypeError):
        raise InputError(f"{sample}: {spec.name} is not an array: its lists differ in length") from None
    if array.dtype.kind not in KINDS[spec.dtype]:
        raise InputError(f"{sample}: {spec.name} holds {array.dtype}, the model takes {spec.dtype}")
    wanted = spec.dims[1:]
    if array.ndim < len(wanted):
        array = _with_single_dims(array, wanted)
    if array.ndim != len(wanted):
        raise InputError(f"{sample}: {spec.name} has shape {array.shape}, expected dims {wanted}")
    return array


def _with_single_dims(array: np.ndarray, wanted: Sequence[int | str]) -> np.ndarray:
    """Dims that can only be 1 are added first, then sequence dims; the array as it is where that does not fit."""
    single = [i for i, d in enumerate(wanted) if d == 1]
    sequences = [i for i, d in enumerate(wanted) if isinstance(d, str)]
    added = [*single, *sequences][: len(wanted) - array.ndim]
    if array.ndim + len(added) < len(wanted):
        return array
    found = np.expand_dims(array, sorted(added))
    fits = all(isinstance(d, str) or d == n for d, n in zip(wanted, found.shape, strict=True))
    return found if fits else array


def _require(sample: Sample, features: Mapping[str, TensorSpec]) -> None:
    """Refuses a sample without an input that no zeros can stand for, such as who speaks."""
    missing = [n for n, s in features.items() if s.modality is None and n not in sample.inputs and n not in OPTIONAL]
    if all(n in features for n in TOGETHER) and sum(n in sample.inputs for n in TOGETHER) == 1:
        missing += [n for n in TOGETHER if n not in sample.inputs]
    if missing:
        dims = features[missing[0]].dims[1:]
        raise InputError(f"{sample.id}: {missing[0]} is missing: give {features[missing[0]].dtype} of dims {dims}")


def _units(sample: Sample, contract: Contract) -> int:
    """How many rows the answer has."""
    if contract.unit_dim is None:
        return 1
    count = _rows(sample.inputs, contract)
    return len(sample.units) if count is None else count + len(sample.unread)


def _rows(inputs: Mapping[str, np.ndarray], contract: Contract) -> int | None:
    """How many units inputs have; None where none of them says it."""
    dim = contract.unit_dim
    for spec in contract.features:
        if dim in spec.dims and spec.name in inputs:
            return int(inputs[spec.name].shape[spec.dims.index(dim) - 1])
    return None
