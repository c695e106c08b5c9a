"""What an ONNX file spends its time on, operator by operator, as ONNX Runtime's profiler counts it."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

CALLS = 5
"""Profiled calls, after the first one."""


def by_operator(path: Path, arrays: Mapping[str, np.ndarray], threads: int = 1) -> dict[str, float]:
    """Part of the time in each type of operator, the largest first; the graph as the default session rewrites it."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(CALLS + 1):
            session.run(None, dict(arrays))
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    time = Counter[str]()
    # Each call runs the same nodes; the first one also allocates.
    for event in nodes[len(nodes) // (CALLS + 1) :]:
        time[event["args"]["op_name"]] += event["dur"]
    return {name: spent / time.total() for name, spent in time.most_common()}
