"""Writes tests/data/tensorrt_api.json: what each TensorRT binding says its classes take and give.

    python tests/record_tensorrt_api.py tensorrt-cu12-bindings==10.16.1.11 tensorrt-cu13-bindings==11.4.0.106

Fetches the wheels of the bindings (1 MiB each) without the libraries below them (2 GiB, which want a GPU): a library of
empty functions stands in for those while the binding is imported and asked. TensorRT-RTX is asked as it is installed.
Needs a C compiler.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

TABLE = Path(__file__).parent / "data" / "tensorrt_api.json"
CLASSES = (
    *("Builder", "INetworkDefinition", "OnnxParser", "ParserError", "IBuilderConfig", "ITimingCache", "IHostMemory"),
    *("Runtime", "ICudaEngine", "IExecutionContext", "EngineInspector", "ITensor", "ILogger", "Logger"),
)
ENUMS = (
    *("NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "ProfilingVerbosity", "TensorIOMode"),
    *("LayerInformationFormat", "EngineValidity", "ComputeCapability", "DataType"),
)
MISSING = re.compile(r"\bU (\w+)$", re.MULTILINE)
NEEDED = re.compile(r"\(NEEDED\).*\[(libnv[\w.]+)\]")
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+\(self.*\) -> .*)$", re.MULTILINE)
PREFIX = re.compile(r"\btensorrt\w*\.tensorrt\w*\.|\b\w+::")


def describe(module: Any) -> dict[str, Any]:
    """Members of a binding: signatures of methods (several where one is overloaded), `property`, or values of enums."""
    found: dict[str, Any] = {"version": module.__version__, "classes": {}, "enums": {}}
    for name in CLASSES:
        # Layers of networks are made by the parser alone.
        members = (m for m in dir(getattr(module, name)) if m == "__init__" or not m.startswith(("_", "add_")))
        found["classes"][name] = {m: _member(getattr(getattr(module, name), m)) for m in members}
    owners = [(n, module) for n in ENUMS] + [("Severity", module.ILogger)]
    for name, owner in owners:
        if hasattr(owner, name):
            values = getattr(owner, name).__members__
            found["enums"][name] = {n: int(v) for n, v in values.items()}
    return found


def _member(member: Any) -> Any:
    if not callable(member) or isinstance(member, type):
        return "property"
    signatures = SIGNATURE.findall(PREFIX.sub("", member.__doc__ or ""))
    # Defaults that are no literals, as `<ProfilingVerbosity.NONE: 2>`.
    return [re.sub(r"= <[^>]*>+", "= ...", s) for s in signatures]


def of_wheel(requirement: str) -> dict[str, Any]:
    """`describe` of the binding in a wheel, in a process that finds empty libraries below it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, requirement]
        subprocess.run(fetch, check=True)
        with ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        binding = folder / "tensorrt_bindings" / "tensorrt.so"
        undefined = subprocess.run(["nm", "-D", "-u", binding], check=True, capture_output=True, text=True).stdout
        ours = [s for s in MISSING.findall(undefined) if "Nv" in s or "Infer" in s or "PluginRegistry" in s]
        (folder / "empty.c").write_text("".join(f"void *{s}(void) {{ return 0; }}\n" for s in ours))
        needed = subprocess.run(["readelf", "-d", binding], check=True, capture_output=True, text=True).stdout
        for library in NEEDED.findall(needed):
            made = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, folder / "empty.c"]
            subprocess.run(["cc", *made], check=True)
        ask = [sys.executable, __file__, "--here", "tensorrt_bindings"]
        places = os.environ | {"LD_LIBRARY_PATH": name, "PYTHONPATH": name}
        said = subprocess.run(ask, check=True, capture_output=True, text=True, env=places).stdout
        return dict(json.loads(said))


def main(words: list[str]) -> None:
    if words[:1] == ["--here"]:
        print(json.dumps(describe(importlib.import_module(words[1]))))
        return
    table = {"tensorrt_rtx": describe(importlib.import_module("tensorrt_rtx_bindings"))}
    table |= {f"tensorrt {found['version'].split('.')[0]}": found for found in map(of_wheel, words)}
    TABLE.write_text(json.dumps(table, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
