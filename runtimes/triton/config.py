"""Configurations of models in Triton, as its own protobuf has them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mer_export.bucket import Bucket
from mer_export.contract import BATCH, Contract, TensorSpec
from mer_export.data.given import OPTIONAL
from mer_export.errors import NotAvailableError
from mer_export.install import not_installed
from runtimes.backends.session import SessionOptions

TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "bytes": "TYPE_STRING", "bool": "TYPE_BOOL"}
VERSION = "1"
"""The folder of a model with what Triton loads."""
WARM_UP = "warmup"
"""The folder of a model where Triton looks for the data of its first calls."""


@dataclass(frozen=True)
class How:
    """How the models of the buckets run: instances side by side, each with the threads of `options`."""

    options: SessionOptions
    precision: str
    instances: int


@dataclass(frozen=True)
class Engine:
    """A backend of Triton that runs what one of our runtimes does.

    `batches`: Triton puts together the requests that wait. Where it does not, the router alone makes batches.
    """

    backend: str
    file: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    settings: Callable[[Any, How], None]
    batches: bool = True


def _onnxruntime(config: Any, how: How) -> None:
    _set(config, intra_op_thread_count=how.options.threads or 0, inter_op_thread_count=1)
    if how.options.on_gpu:
        # Left alone the provider computes fp32 in TF32.
        cuda = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
        cuda.parameters["use_tf32"] = "1" if how.options.reduced == "tf32" else "0"
    elif how.instances > 1:
        # Releases from 2026 on load the weights once for all instances; earlier ones do not know the word.
        _set(config, share_session_between_instances="true")


def _openvino(config: Any, how: How) -> None:
    # The instances are requests to one compiled model.
    _set(config, NUM_STREAMS=how.instances, INFERENCE_NUM_THREADS=how.instances * (how.options.threads or 1))
    if how.options.reduced == "bf16":
        _set(config, HINT_BF16="YES")


def _tensorrt(config: Any, how: How) -> None:
    """An engine says it all itself."""


ENGINES = {
    "onnxruntime": Engine("onnxruntime", "model.onnx", ("cpu", "cuda"), ("fp32", "fp16", "int8", "tf32"), _onnxruntime),
    # It fills every batch up to the largest where Triton makes them.
    "openvino": Engine("openvino", "model.xml", ("cpu",), ("fp32", "fp16", "bf16"), _openvino, batches=False),
    "tensorrt": Engine("tensorrt", "model.plan", ("cuda",), ("fp32", "fp16", "bf16"), _tensorrt, batches=False),
}
"""By our name of the runtime."""


def protobuf() -> Any:
    """The module of Triton's messages; raises NotAvailableError without it."""
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise NotAvailableError(not_installed("tritonclient[grpc]", "triton")) from None
    return model_config_pb2


def text(config: Any) -> bytes:
    """What stands in config.pbtxt."""
    from google.protobuf import text_format

    return text_format.MessageToString(config, as_utf8=True).encode()


def bucket_config(
    name: str, engine: Engine, how: How, contract: Contract, bucket: Bucket, batch: int, fixed: bool
) -> Any:
    """The model of one bucket.

    Args:
        name: of the model.
        engine: what runs it.
        how: on which device, side by side with how many.
        contract: names and dims.
        bucket: the lengths that it is made for.
        batch: items of a call, at most.
        fixed: the file takes exactly so many.
    """
    config = protobuf().ModelConfig(name=name, backend=engine.backend, default_model_filename=engine.file)
    batched = batches(engine, contract, fixed)
    config.max_batch_size = batch if batched else 0
    sizes = {BATCH: batch if fixed else -1, **bucket}
    for spec in contract.inputs:
        _port(config.input.add(), spec, sizes, batched)
    for spec in contract.outputs:
        _port(config.output.add(), spec, sizes, batched)
    if batched:
        # Whatever waits when an instance is free runs together; nothing waits for company.
        config.dynamic_batching.SetInParent()
    _instances(config, how.options, how.instances)
    engine.settings(config, how)
    for size in sorted({batch} if fixed else {1, batch}):
        _warm_up(config, contract, bucket, size, batched)
    return config


def batches(engine: Engine, contract: Contract, fixed: bool) -> bool:
    """Whether Triton makes the batches of a model: of every input the first dim is then any number of items."""
    return engine.batches and not fixed and all(s.batched for s in contract.inputs)


def router_config(
    name: str, contract: Contract, answers: Sequence[TensorSpec | Answer], labels: Sequence[str], most: int, count: int
) -> Any:
    """The model that is asked: unpadded items of any length, at most so many at once."""
    config = protobuf().ModelConfig(name=name, backend="python", max_batch_size=most)
    for spec in (s for s in contract.inputs if s.batched):
        port = config.input.add()
        _port(port, spec, {}, batched=True, reshaped=False)
        port.optional = spec.counts is not None or spec.modality is not None or spec.name in OPTIONAL
        # Items of several lengths go to the router together.
        port.allow_ragged_batch = True
    for answer in answers:
        _port(config.output.add(), answer, {}, batched=True)
    config.dynamic_batching.SetInParent()
    _instances(config, SessionOptions(), count)
    _set(config, labels=json.dumps(list(labels), ensure_ascii=False))
    return config


@dataclass(frozen=True)
class Answer:
    """An output that the router adds to those of the network."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


def warm_up_data(config: Any, contract: Contract, bucket: Bucket) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files that the first calls read: lengths of items that fill the bucket."""
    for sample in config.model_warmup:
        for spec in (s for s in contract.inputs if s.counts):
            given = sample.inputs[spec.name]
            yield given.input_data_file, bucket[str(spec.counts)].to_bytes(8, "little") * math.prod(given.dims)


def _port(port: Any, spec: TensorSpec | Answer, sizes: Mapping[str, int], batched: bool, reshaped: bool = True) -> None:
    port.name, port.data_type = spec.name, protobuf().DataType.Value(TYPES[spec.dtype])
    dims = [d if isinstance(d, int) else sizes.get(d, -1) for d in (spec.dims[1:] if batched else spec.dims)]
    port.dims.extend(dims or [1])
    if not dims and reshaped:
        # Triton knows no input without dims, so each item sends one number in one dim, which the network never sees.
        port.reshape.SetInParent()


def _instances(config: Any, options: SessionOptions, count: int) -> None:
    group = config.instance_group.add(count=count)
    group.kind = group.KIND_GPU if options.on_gpu else group.KIND_CPU
    if ":" in options.device:
        group.gpus.append(options.number)


def _warm_up(config: Any, contract: Contract, bucket: Bucket, size: int, batched: bool) -> None:
    """A first call of so many items, so that no request pays for it."""
    sample = config.model_warmup.add(
        name=f"{size} item{'s' if size > 1 else ''}", batch_size=size if batched else 0, count=1
    )
    for spec in contract.inputs:
        given = sample.inputs[spec.name]
        given.data_type = protobuf().DataType.Value(TYPES[spec.dtype])
        dims = [d if isinstance(d, int) else {BATCH: size, **bucket}[d] for d in spec.dims[1 if batched else 0 :]]
        given.dims.extend(dims or [1])
        if spec.counts:
            given.input_data_file = f"{spec.name}-{math.prod(given.dims)}"
        else:
            given.zero_data = True


def _set(config: Any, **parameters: Any) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = str(value)
