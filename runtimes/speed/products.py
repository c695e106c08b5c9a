"""How fast this processor multiplies in each precision that OpenVINO computes in.

Some processors that have bf16 instructions multiply slower in bf16 than in fp32: what they can is timed, not read off
their flags.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from runtimes.backends.openvino import BACKEND
from runtimes.backends.session import Reduced
from runtimes.backends.table import backend_problem
from runtimes.speed.timing import interleave, warm_up

SIZE, ROUNDS = 1024, 9
WORTH = 1.1
"""Times as fast as fp32 from which on a reduced precision may pay; less is what timing varies by."""


def products(rounds: int = ROUNDS) -> dict[str, float]:
    """GFLOP/s of a product of two 1024 x 1024 matrices on one thread by precision, the fastest of interleaved rounds.

    Empty without OpenVINO.
    """
    if backend_problem(BACKEND.name):
        return {}
    calls: dict[str, Any] = {str(reduced or "fp32"): _product(reduced) for reduced in (None, *BACKEND.reduces["cpu"])}
    for call in calls.values():
        warm_up(call)
    turns = interleave(calls, rounds)
    return {name: 2 * SIZE**3 / (1e9 * float(np.concatenate(turns[name].wall).min())) for name in calls}


def slower(measured: dict[str, float], precision: str | None) -> str | None:
    """Why a precision is not worth trying on the processor that was measured; None where it is, or was not measured."""
    if precision not in measured or measured[precision] >= WORTH * measured["fp32"]:
        return None
    return (
        f"this processor multiplies no faster in {precision} than in fp32 ({measured[precision]:.0f} and "
        f"{measured['fp32']:.0f} GFLOP/s): name it with --precision to time it all the same"
    )


def _product(reduced: Reduced | None) -> Any:
    """A call that multiplies in a precision."""
    import openvino
    from openvino import opset13 as ops

    from runtimes.backends.openvino.int8 import quantise_matrices
    from runtimes.backends.openvino.session import SETTINGS

    left, right = (np.random.default_rng(s).standard_normal((SIZE, SIZE), dtype=np.float32) for s in (0, 1))
    given = ops.parameter(left.shape, np.float32)
    graph = openvino.Model([ops.matmul(given, ops.constant(right), False, True)], [given])
    if reduced == "int8":
        quantise_matrices(graph)
    settings = SETTINGS[reduced] | {"INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": "NO"}
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    return partial(request.infer, [left], share_inputs=True)
