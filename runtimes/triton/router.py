"""The router of a model in Triton: takes unpadded items, asks the model of the bucket that fits, answers with labels.

`mer triton` copies this file to `1/model.py` of the router, with `contract.json` beside it. It runs inside Triton's
Python backend: numpy is all that it needs. Items are given as to `mer serve`: all inputs of a request have one length,
or lengths inputs say what is real; an input that is left out is a missing modality. How items are padded and answers
read is the predictor's to say: `tests/test_triton_router.py` holds the two together.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Lengths = dict[str, int]
BATCH = "batch"


class Refusal(ValueError):
    """An item that the model cannot take, in one sentence."""


@dataclass
class Item:
    """One unpadded item, its real lengths, and the number of its bucket: None where nothing of it can be read."""

    inputs: Arrays
    lengths: Lengths
    bucket: int | None
    outputs: Arrays = field(default_factory=dict)
    problem: str = ""
    """Of the model that it was sent to."""


class Router:
    """What contract.json says, applied to arrays. Knows nothing of Triton."""

    def __init__(self, contract: Mapping[str, Any]):
        self.inputs: list[dict[str, Any]] = contract["inputs"]
        self.outputs: list[dict[str, Any]] = contract["outputs"]
        self.buckets: list[dict[str, Any]] = contract["buckets"]
        """Least first."""
        self.contract, self.task = contract, contract["task"]
        self.answers: list[dict[str, Any]] = contract["answers"]
        self.counts = [s for s in self.inputs if s["counts"]]
        self.features = [s for s in self.inputs if s["dims"][0] == BATCH and not s["counts"]]
        self.shared = {name: np.asarray(rows, np.float32) for name, rows in contract["shared"].items()}

    def items(self, tensors: Mapping[str, np.ndarray]) -> list[Item]:
        """The items of a request; raises Refusal for one that the model cannot take."""
        if not tensors:
            raise Refusal("the request has no input")
        return [self._item(tensors, number) for number in range(len(next(iter(tensors.values()))))]

    def _item(self, tensors: Mapping[str, np.ndarray], number: int) -> Item:
        where = f"item {number}"
        inputs = {s["name"]: tensors[s["name"]][number] for s in self.features if s["name"] in tensors}
        for counter in self.counts:
            if counter["name"] in tensors:
                length = int(tensors[counter["name"]].reshape(-1)[number])
                self._cut_to(inputs, counter, length, where)
        together = self.contract["together"]
        missing = [n for n in together if n not in inputs]
        if missing and len(missing) < len(together):
            raise Refusal(f"{where}: {missing[0]} is missing: give all of {together}, or none")
        for spec in self.features:
            if spec["name"] in inputs:
                _check_values(inputs[spec["name"]], spec, where)
        if self.contract["modalities"] and not self.modalities(inputs):
            return Item(inputs, self._found(inputs, where), None)
        lengths = self._lengths(inputs, where)
        return Item(inputs, lengths, self._bucket(lengths, where))

    def _cut_to(self, inputs: Arrays, counter: Mapping[str, Any], length: int, where: str) -> None:
        """Leaves what is real of the inputs that a lengths input counts; a modality of length 0 is missing."""
        dim, modality = counter["counts"], counter["modality"]
        for spec in self.features:
            name = spec["name"]
            if name in inputs and dim in spec["dims"] and modality in (None, spec["modality"]):
                axis = spec["dims"].index(dim) - 1
                if not 0 <= length <= inputs[name].shape[axis]:
                    raise Refusal(f"{where}: {counter['name']} is {length}, {name} has {inputs[name].shape[axis]}")
                inputs[name] = inputs[name][(slice(None),) * axis + (slice(length),)]
                if not length and modality:
                    del inputs[name]

    def modalities(self, inputs: Mapping[str, np.ndarray]) -> set[str]:
        """Those that an item has."""
        return {s["modality"] for s in self.features if s["name"] in inputs} - {None}

    def _found(self, inputs: Mapping[str, np.ndarray], where: str) -> Lengths:
        """The lengths that the inputs have."""
        found: Lengths = {dim: len(self.shared[name]) for name, dim in self.contract["shared_dims"].items()}
        for spec in self.features:
            if spec["name"] not in inputs:
                continue
            for dim, size in zip(spec["dims"][1:], inputs[spec["name"]].shape, strict=True):
                if isinstance(dim, str) and found.setdefault(dim, size) != size:
                    raise Refusal(f"{where}: {spec['name']} has {size} {dim}, other inputs have {found[dim]}")
                if size == 0:
                    raise Refusal(f"{where}: {spec['name']} has no {dim}: remove the empty item")
        return found

    def _lengths(self, inputs: Mapping[str, np.ndarray], where: str) -> Lengths:
        """The real length of each sequence dim, 0 where its modality is missing."""
        found = self._found(inputs, where)
        for dim, fill in self.contract["fill"].items():
            if dim in found:
                found[dim] = max(found[dim], fill["length"])
        for dim, least in self.contract["shortest"].items():
            if dim in found and found[dim] < least:
                raise Refusal(f"{where}: {found[dim]} {dim} are fewer than the {least} that the network needs")
        missing = [s for s in self.features if s["modality"] and s["name"] not in inputs]
        found = {d: 0 for s in missing for d in s["dims"][1:] if isinstance(d, str)} | found
        if unknown := [d for d in self.buckets[0]["lengths"] if d not in found]:
            raise Refusal(f"{where}: no input gives the length of {unknown}")
        return found

    def _bucket(self, lengths: Lengths, where: str) -> int:
        for number, bucket in enumerate(self.buckets):
            if all(size <= bucket["lengths"][dim] for dim, size in lengths.items()):
                return number
        longest = self.buckets[-1]["lengths"]
        over = {d: n for d, n in lengths.items() if n > longest[d]}
        raise Refusal(f"{where}: lengths {over or lengths} are more than the longest of this model, {longest}")

    def pad(self, items: Sequence[Item], number: int) -> Arrays:
        """The inputs of the model of a bucket, zeros or what an input says where nothing is real."""
        bucket = self.buckets[number]
        size = bucket["batch"] if bucket["filled"] else len(items)
        sizes = {BATCH: size, **bucket["lengths"]}
        arrays = {}
        for spec in self.inputs:
            shape = [sizes[d] if isinstance(d, str) else d for d in spec["dims"]]
            out = arrays[spec["name"]] = np.full(shape, spec["padding"] or 0, spec["dtype"])
            if spec["dims"][0] != BATCH:
                out[: len(self.shared[spec["name"]])] = self.shared[spec["name"]]
            elif spec["counts"]:
                out[: len(items)] = [self._count(spec, item) for item in items]
            else:
                for row, item in zip(out, items, strict=False):
                    if spec["name"] in item.inputs:
                        values = item.inputs[spec["name"]]
                        places = zip(spec["dims"][1:], values.shape, strict=True)
                        row[tuple(self._place(dim, n) for dim, n in places)] = values
        return arrays

    def _count(self, spec: Mapping[str, Any], item: Item) -> int:
        absent = spec["modality"] and spec["modality"] not in self.modalities(item.inputs)
        return 0 if absent else item.lengths[spec["counts"]]

    def _place(self, dim: str | int, size: int) -> slice:
        """Where the values of an input go: to the end of what it is filled up to, or to the beginning."""
        fill = self.contract["fill"].get(dim)
        start = max(0, fill["length"] - size) if fill and fill["side"] == "left" else 0
        return slice(start, start + size)

    def cut(self, outputs: Mapping[str, np.ndarray], items: Sequence[Item]) -> None:
        """Gives each of the items of a batch what is real of its outputs."""
        for number, item in enumerate(items):
            for spec in self.outputs:
                real = (slice(item.lengths[d] if isinstance(d, str) else d) for d in spec["dims"][1:])
                item.outputs[spec["name"]] = outputs[spec["name"]][number][tuple(real)]

    def answer(self, tensors: Mapping[str, np.ndarray], items: Sequence[Item]) -> Arrays:
        """The outputs of a request: those of the network, and what they say.

        Along sequence dims they are as long as what was sent, zeros (empty labels) past what is real. Of an item of
        which nothing can be read outputs and probabilities are NaN, and labels empty.
        """
        for item in items:
            if item.bucket is None:
                shapes = {s["name"]: [_size(d, item.lengths) for d in s["dims"][1:]] for s in self.outputs}
                item.outputs = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
            item.outputs |= self._read(item.outputs) if self.answers else {}
        sent = {
            dim: size
            for spec in self.features
            if spec["name"] in tensors
            for dim, size in zip(spec["dims"], tensors[spec["name"]].shape, strict=True)
            if isinstance(dim, str)
        }
        specs = [*self.outputs, *self.answers]
        return {s["name"]: _stacked([i.outputs[s["name"]] for i in items], s["dims"][1:], sent) for s in specs}

    def _read(self, outputs: Arrays) -> Arrays:
        """What the scores of an item say of each of its units."""
        labels, scores = self.task["labels"], outputs[self.task["output"]]
        if self.contract["unit_dim"] is None:
            # Past the labels there may be slots for more of them.
            scores = scores[None, : self.contract["width"]]
        answered = np.asarray(~np.isnan(scores).any(axis=-1))
        scores = np.where(answered[:, None], scores, 0)
        said = zip(self._decide(scores), answered, strict=True)
        label = [labels[index].encode() if known else b"" for index, known in said]
        found = {"label": np.array(label, dtype=object)}
        if self.task["kind"] != "regression":
            found["probability"] = np.where(answered[:, None], self._probabilities(scores), np.nan).astype(np.float32)
        if self.task["kind"] == "multilabel":
            found["holds"] = (scores > np.asarray(self.contract["cuts"], np.float32)) & answered[:, None]
        if self.contract["unit_dim"] is None:
            return {name: values.reshape(values.shape[-1:]) for name, values in found.items()}
        return found

    def _decide(self, scores: np.ndarray) -> np.ndarray:
        """The number of the label of each unit: of several that hold the most probable, of a score its class."""
        if self.task["kind"] != "regression":
            return np.argmax(scores, axis=-1)
        value = np.clip(scores[..., 0], *self.task["limits"])
        if edges := self.task["edges"]:
            return np.searchsorted(np.asarray(edges, value.dtype), value, side="left")
        return (np.round(value) - self.task["limits"][0]).astype(np.int64)

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        scores = scores.astype(np.float64)
        if self.task["kind"] == "multilabel":
            return 0.5 * (1.0 + np.tanh(0.5 * scores))
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)


def _check_values(values: np.ndarray, spec: Mapping[str, Any], where: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise Refusal(f"{where}: {spec['name']} holds {values[place]} at {place}: repair or drop the modality")
    below = spec["below"]
    if below is not None and values.size and not 0 <= values.min() <= values.max() < below:
        raise Refusal(
            f"{where}: {spec['name']} goes from {values.min()} to {values.max()}, the model knows 0..{below - 1}"
        )


def _size(dim: str | int, lengths: Mapping[str, int]) -> int:
    return lengths.get(dim, 0) if isinstance(dim, str) else dim


def _stacked(rows: Sequence[np.ndarray], dims: Sequence[str | int], sent: Mapping[str, int]) -> np.ndarray:
    """Rows of several lengths as one array, as long as the longest and as what was sent."""
    most = [max(sizes) for sizes in zip(*(r.shape for r in rows), strict=True)]
    shape = [max(n, _size(d, sent)) for d, n in zip(dims, most, strict=True)]
    found = np.full((len(rows), *shape), b"" if rows[0].dtype == object else 0, rows[0].dtype)
    for place, row in zip(found, rows, strict=True):
        place[tuple(map(slice, row.shape))] = row
    return found


class TritonPythonModel:
    """What Triton's Python backend loads and calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Reads the contract."""
        import triton_python_backend_utils

        self.triton = triton_python_backend_utils
        folder = Path(args["model_repository"]) / args["model_version"]
        self.router = Router(json.loads((folder / "contract.json").read_text(encoding="utf-8")))

    async def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request. What waits together runs together: items of all requests, by bucket."""
        asked = [self._asked(r) for r in requests]
        waiting: dict[int, list[Item]] = {}
        for item in (i for own in asked if isinstance(own[1], list) for i in own[1]):
            if item.bucket is not None:
                waiting.setdefault(item.bucket, []).append(item)
        batches = [
            (number, items[start : start + self.router.buckets[number]["batch"]])
            for number, items in waiting.items()
            for start in range(0, len(items), self.router.buckets[number]["batch"])
        ]
        await asyncio.gather(*(self._run(number, items) for number, items in batches))
        return [self._response(tensors, items) for tensors, items in asked]

    def _asked(self, request: Any) -> tuple[Arrays, list[Item] | str]:
        """The tensors of a request and its items, or why it is refused."""
        tensors = {t.name(): t.as_numpy() for t in request.inputs()}
        try:
            return tensors, self.router.items(tensors)
        except Refusal as error:
            return tensors, str(error)

    async def _run(self, number: int, items: Sequence[Item]) -> None:
        """Gives items their outputs, or the problem of the model that they were sent to."""
        bucket, arrays = self.router.buckets[number], self.router.pad(items, number)
        if bucket["batched"]:
            # Where Triton makes the batches, every dim after the first must have a size.
            arrays |= {s["name"]: arrays[s["name"]][:, None] for s in self.router.counts}
        request = self.triton.InferenceRequest(
            model_name=bucket["model"],
            requested_output_names=[s["name"] for s in self.router.outputs],
            inputs=[self.triton.Tensor(name, array) for name, array in arrays.items()],
            preferred_memory=self.triton.PreferredMemory(self.triton.TRITONSERVER_MEMORY_CPU),
        )
        response = await request.async_exec()
        if response.has_error():
            for item in items:
                item.problem = response.error().message()
        else:
            self.router.cut({t.name(): t.as_numpy() for t in response.output_tensors()}, items)

    def _response(self, tensors: Arrays, items: list[Item] | str) -> Any:
        if isinstance(items, str):
            return self._error(items, self.triton.TritonError.INVALID_ARG)
        if problem := next((i.problem for i in items if i.problem), ""):
            return self._error(problem, self.triton.TritonError.INTERNAL)
        found = self.router.answer(tensors, items)
        return self.triton.InferenceResponse([self.triton.Tensor(n, a) for n, a in found.items()])

    def _error(self, why: str, code: Any) -> Any:
        return self.triton.InferenceResponse(error=self.triton.TritonError(why, code))
