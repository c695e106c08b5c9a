"""Stand-ins for what needs a GPU: a TensorRT module that takes the recorded calls of one binding and no others, and a
CUDA driver on host memory.

The engine of the stand-in is its ONNX file, run by ONNX Runtime on whatever lies at the addresses that it was given.
"""

from __future__ import annotations

import ast
import ctypes
import enum
import inspect
import json
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

TABLE: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "tensorrt_api.json").read_text())
SIMPLE = {"str": str, "bool": bool, "typing.SupportsInt": int | enum.IntEnum, "typing_extensions.Buffer": bytes}
"""Types in signatures that an argument is held against; those of enums and classes are too, the rest is not."""


def signature(said: str) -> inspect.Signature:
    """A recorded signature, its annotations as text."""
    made = ast.parse(f"def {said}: pass").body[0]
    assert isinstance(made, ast.FunctionDef)
    without = len(made.args.args) - len(made.args.defaults)
    parameters = [
        inspect.Parameter(
            a.arg,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if i < without else None,
            annotation=ast.unparse(a.annotation) if a.annotation else "",
        )
        for i, a in enumerate(made.args.args)
    ]
    return inspect.Signature(parameters, return_annotation=ast.unparse(made.returns) if made.returns else "None")


class TensorRt:
    """A binding as a module: classes and enums of the table, with the little of the library that calls depend on."""

    def __init__(self, flavour: str, driver: Driver):
        self._table, self._driver = TABLE[flavour], driver
        self.__spec__ = ModuleSpec(flavour, None)
        self.__version__: str = self._table["version"]
        self.calls: list[str] = []
        for name, values in self._table["enums"].items():
            if name != "Severity":
                setattr(self, name, enum.IntEnum(name, values))
        severity = enum.IntEnum("Severity", self._table["enums"]["Severity"])
        for name, members in self._table["classes"].items():
            own = {m: _method(self, f"{name}.{m}", said) for m, said in members.items() if isinstance(said, list)}
            known = frozenset(members)
            own |= {"__setattr__": _setter(name, known), "__getattr__": _getter(self, name, known)}
            own |= {"Severity": severity, **severity.__members__} if "Severity" in members else {}
            setattr(self, name, type(name, (self.ILogger,) if name == "Logger" else (), own))  # type: ignore[attr-defined]
        self.IHostMemory.__bytes__ = lambda memory: memory.__dict__["content"]  # type: ignore[attr-defined]

    def nptype(self, dtype: Any) -> Any:
        return {"FLOAT": np.float32, "INT64": np.int64}[dtype.name]

    def make(self, kind: str, /, **state: Any) -> Any:
        """An object of a class of the binding that only the library makes."""
        made = object.__new__(getattr(self, kind))
        made.__dict__.update(state)
        return made

    # What the library does, by name.

    def parse_from_file(self, parser: Any, model: str) -> bool:
        parser.__dict__["network"].__dict__["file"] = Path(model).read_bytes()
        return True

    def build_serialized_network(self, builder: Any, network: Any, config: Any) -> Any:
        assert config.__dict__["profiling_verbosity"].name == "DETAILED"
        cache = config.__dict__.get("cache")
        if cache is not None:
            cache.__dict__["content"] += b"times"
        return self.make("IHostMemory", content=network.__dict__["file"])

    def num_inputs(self, network: Any) -> int:
        return len(_ports(network.__dict__["file"])[0])

    def num_outputs(self, network: Any) -> int:
        return len(_ports(network.__dict__["file"])[1])

    def get_input(self, network: Any, index: int) -> Any:
        return self.make("ITensor", name=_ports(network.__dict__["file"])[0][index].name)

    def get_output(self, network: Any, index: int) -> Any:
        return self.make("ITensor", name=_ports(network.__dict__["file"])[1][index].name)

    def create_timing_cache(self, config: Any, serialized_timing_cache: bytes) -> Any:
        return self.make("ITimingCache", content=serialized_timing_cache)

    def set_timing_cache(self, config: Any, cache: Any, ignore_mismatch: bool) -> bool:
        config.__dict__["cache"] = cache
        return b"other" not in cache.__dict__["content"]

    def get_timing_cache(self, config: Any) -> Any:
        return config.__dict__["cache"]

    def serialize(self, cache: Any) -> Any:
        return self.make("IHostMemory", content=cache.__dict__["content"])

    def get_engine_validity(self, runtime: Any, buffer: bytes) -> tuple[Any, int]:
        return self.EngineValidity.VALID, 0  # type: ignore[attr-defined]

    def deserialize_cuda_engine(self, runtime: Any, serialized_engine: bytes) -> Any:
        self._driver.current()
        ports = _ports(serialized_engine)
        named = {p.name: (p, mode) for mode, group in zip(("INPUT", "OUTPUT"), ports, strict=True) for p in group}
        return self.make("ICudaEngine", file=serialized_engine, ports=named, num_io_tensors=len(named))

    def get_tensor_name(self, engine: Any, index: int) -> str:
        return list(engine.__dict__["ports"])[index]

    def get_tensor_mode(self, engine: Any, name: str) -> Any:
        return self.TensorIOMode[engine.__dict__["ports"][name][1]]  # type: ignore[attr-defined]

    def get_tensor_dtype(self, engine: Any, name: str) -> Any:
        kinds = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}
        return self.DataType[kinds[engine.__dict__["ports"][name][0].type]]  # type: ignore[attr-defined]

    def get_tensor_shape(self, engine: Any, name: str) -> list[int]:
        return list(engine.__dict__["ports"][name][0].shape)

    def create_execution_context(self, engine: Any) -> Any:
        self._driver.current()
        return self.make("IExecutionContext", engine=engine, addresses={})

    def set_tensor_address(self, context: Any, name: str, memory: int) -> bool:
        context.__dict__["addresses"][name] = memory
        return True

    def execute_async_v3(self, context: Any, stream_handle: int) -> bool:
        self._driver.current()
        engine, addresses = context.__dict__["engine"].__dict__, context.__dict__["addresses"]
        given = {}
        for name, (port, mode) in engine["ports"].items():
            if mode == "INPUT":
                array = np.empty(port.shape, {"tensor(float)": np.float32}.get(port.type, np.int64))
                ctypes.memmove(array.ctypes.data, addresses[name], array.nbytes)
                given[name] = array
        names = [n for n, (_, mode) in engine["ports"].items() if mode == "OUTPUT"]
        for name, found in zip(names, _session(engine["file"]).run(names, given), strict=True):
            ctypes.memmove(addresses[name], np.ascontiguousarray(found).ctypes.data, found.nbytes)
        return True

    def get_engine_information(self, inspector: Any, format: Any) -> str:
        return LAYERS if format.name == "JSON" else "text"


LAYERS = json.dumps(
    {
        "Layers": [
            {"Name": "a", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}], "Outputs": []},
            {"Name": "b", "Inputs": [{"Format/Datatype": "Half"}], "Outputs": [{"Format/Datatype": "Float"}]},
            {"Name": "c", "Inputs": [{"Format/Datatype": "Int64"}], "Outputs": [{"Format/Datatype": "Float"}]},
            {"Name": "d", "Inputs": [{"Format/Datatype": "Row major linear BFloat16"}], "Outputs": []},
            {"Name": "e", "Inputs": [{"Format/Datatype": "Int64"}], "Outputs": []},
        ],
        "Bindings": ["x"],
    }
)
"""An engine's account of itself, as the inspector writes it with and without an execution context."""


def _session(file: bytes) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def _ports(file: bytes) -> tuple[Any, Any]:
    session = _session(file)
    return session.get_inputs(), session.get_outputs()


def _method(library: TensorRt, name: str, said: list[str]) -> Any:
    """A method that takes what one of its signatures takes, and gives what that says."""
    signatures = [signature(s) for s in said]

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        library.calls.append(name)
        for one in signatures:
            try:
                bound = one.bind(self, *arguments, **named)
            except TypeError:
                continue
            if all(_fits(library, one.parameters[k].annotation, v) for k, v in bound.arguments.items() if k != "self"):
                return _answer(library, name.split(".")[1], self, bound, one.return_annotation)
        raise TypeError(f"{name}({arguments}, {named}): the binding has {said}")

    return call


def _fits(library: TensorRt, annotation: str, value: Any) -> bool:
    kind = SIMPLE.get(annotation) or getattr(library, annotation, None)
    return (not isinstance(kind, type) and annotation not in SIMPLE) or isinstance(value, kind)


def _answer(library: TensorRt, name: str, self: Any, bound: inspect.BoundArguments, gives: str) -> Any:
    own = getattr(type(library), name, None)
    if name == "__init__":
        self.__dict__.update({k: v for k, v in bound.arguments.items() if k != "self"})
        return None
    if own is not None:
        return own(library, self, *[v for k, v in bound.arguments.items() if k != "self"])
    return library.make(gives) if isinstance(getattr(library, gives, None), type) else None


def _setter(kind: str, known: frozenset[str]) -> Any:
    def set_one(self: Any, name: str, value: Any) -> None:
        if name not in known and type(self).__name__ == kind:
            raise AttributeError(f"{kind} has no {name}")
        self.__dict__[name] = value

    return set_one


def _getter(library: TensorRt, kind: str, known: frozenset[str]) -> Any:
    def get_one(self: Any, name: str) -> Any:
        # Asked for what is not set: a property of the binding, or nothing that it has.
        own = getattr(type(library), name, None)
        if name not in known or own is None:
            raise AttributeError(f"{kind} has no {name}")
        return own(library, self)

    return get_one


class Driver:
    """The driver's functions on host memory. What needs a current device fails in a thread that has none."""

    def __init__(self, devices: int = 1, capability: tuple[int, int] = (8, 9)):
        self.devices, self.capability = devices, capability
        self.number: dict[int, int] = {}
        self.memory: dict[int, Any] = {}
        self.log: list[str] = []

    def current(self) -> int:
        """The context of the calling thread."""
        assert threading.get_ident() in self.number, "no device is current in this thread"
        return self.number[threading.get_ident()]

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.log.append(name)
            return int(getattr(Driver, f"_{name}")(self, *arguments) or 0)

        return call

    def _cuInit(self, flags: int) -> int:
        return 0 if self.devices else 100

    def _cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0 if number < self.devices else 101

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:
        name.value = b"A Card"

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj[attribute - 75] = self.capability[attribute - 75]

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        context._obj.value = 1000 + device.value

    def _cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:
        pass

    def _cuCtxSetCurrent(self, context: Any) -> None:
        self.number[threading.get_ident()] = context.value

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:
        self.current()
        stream._obj.value = 7

    def _cuStreamDestroy_v2(self, stream: Any) -> None:
        self.current()

    def _cuStreamSynchronize(self, stream: Any) -> None:
        self.current()

    def _cuMemAlloc_v2(self, address: Any, size: Any) -> None:
        self.current()
        made = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(made)
        self.memory[ctypes.addressof(made)] = made

    def _cuMemHostAlloc(self, address: Any, size: Any, flags: int) -> None:
        self._cuMemAlloc_v2(address, size)

    def _cuMemFree_v2(self, address: Any) -> None:
        del self.memory[address.value]

    def _cuMemFreeHost(self, address: Any) -> None:
        del self.memory[address.value]

    def _cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:
        self.current()
        ctypes.memmove(to.value, source.value, size.value)

    def _cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:
        self.current()
        ctypes.memmove(to.value, source.value, size.value)

    def _cuGetErrorString(self, status: int, text: Any) -> None:
        pass
