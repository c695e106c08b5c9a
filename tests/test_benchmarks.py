"""The suites count work as it is and draw items as they say."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import exports, histograms, within
from benchmarks.environments import Installed
from benchmarks.flops import gflop, parts
from benchmarks.http_load import Listening, load
from benchmarks.operators import by_operator
from benchmarks.original import CASES
from benchmarks.peers import BASE, Other, compare, default_session
from benchmarks.suite import NETWORKS, random_samples, real_samples
from benchmarks.systems import _rows
from mer_export import registry
from runtimes.speed.bench_report import BenchReport

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def test_the_page_of_limits_on_trained_bundles_is_made_of_its_numbers() -> None:
    found = RESULTS / "within.json"
    assert within.markdown(json.loads(found.read_text())) == found.with_suffix(".md").read_text()


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A file with one product, of (batch, 3, 5) by (5, 7)."""
    weight = np.ones((5, 7), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_work_is_two_operations_for_each_multiply_add_at_the_shapes_of_the_run(product: Path) -> None:
    path = product
    assert gflop(path, {"x": np.zeros((4, 3, 5), np.float32)}) == 2 * 4 * 3 * 5 * 7 / 1e9
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_products_of_what_a_recurrent_layer_reads_are_told_from_those_of_its_states(tmp_path: Path) -> None:
    weights = {"w": np.ones((2, 9, 5), np.float32), "r": np.ones((2, 9, 3), np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node(
                *("GRU", ["x", "w", "r"], ["y"]), name="rnn/GRU_0", hidden_size=3, direction="bidirectional"
            )
        ],
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, "batch", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    assert parts(path, {"x": np.zeros((4, 1, 5), np.float32)}) == {
        "rnn/GRU_0, of what it reads": 2 * 4 * 2 * 9 * 5,
        "rnn/GRU_0, of its states": 2 * 4 * 2 * 9 * 3,
    }


def test_time_is_told_by_operator_and_the_profile_goes(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(product.parent)
    assert by_operator(product, {"x": np.zeros((4, 3, 5), np.float32)}) == {"MatMul": 1.0}
    assert [p.name for p in product.parent.iterdir()] == ["model.onnx"]


def test_who_leaves_work_out_says_no_part_of_the_limit() -> None:
    kept = json.loads((RESULTS / "facialmmt-2thread.json").read_text())["networks"]["facialmmt_fusion"]
    case = BenchReport.model_validate(kept["bench"][0]).cases[0]
    shown = {line.split(" | ")[0].strip("| "): line.strip("| ").rsplit(" | ")[-1] for line in _rows(case, 1.0, 1.0)}
    assert shown["openvino stages"] == shown["torch unpadded"] == "–"
    assert all(shown[way].endswith("%") for way in ("openvino", "openvino stages afresh", "torch"))


def test_files_of_within_are_timed_on_one_thread_each(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def session(path: Path, arrays: dict[str, np.ndarray], answer: int, threads: int) -> Callable[[], np.ndarray]:
        asked.append(threads)
        return default_session(path, arrays, answer, threads)

    monkeypatch.setattr(within, "default_session", session)
    job = SimpleNamespace(batch=0, feed=lambda items: {"x": np.zeros((items, 3, 5), np.float32)})
    found = within._by_turns(job, {"fp32": product, "chosen": product}, 3)
    assert asked == [1, 1]
    assert found.keys() == {"fp32", "chosen"}
    assert all(ms > 0 for ms in found.values())


def test_a_precision_that_no_format_has_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        exports.main(["--out", str(tmp_path), "--network", "mtee_rnn", "--precision", "int9"])
    assert ended.value.code == 2
    assert "int9" in capsys.readouterr().err


def test_clients_of_a_server_that_is_gone_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port = closing.getsockname()[1]
    with pytest.raises(OSError):  # noqa: PT011 (whatever the system calls it)
        load(Listening("127.0.0.1", port, cast(Any, None)), [b""], 2, seconds=60, during=lambda: None)


def test_items_of_the_authors_calls_have_a_bucket_each_and_the_longest_is_the_networks_or_shorter() -> None:
    for name, case in CASES.items():
        own = NETWORKS[case.network].buckets[-1]
        assert len(case.exported) == len(case.buckets or {tuple(i.items()) for i in case.items}), name
        for item in case.items:
            assert any(all(n <= bucket[d] for d, n in item.items()) for bucket in case.exported), name
        assert all(bucket.keys() == own.keys() for bucket in case.exported), name
    drawn = CASES["emt_b32"].items
    assert len(drawn) == 32
    assert drawn[0] == {"text_len": 50, "audio_len": 375, "vision_len": 500}


def test_real_lengths_are_those_of_the_histogram_within_what_the_network_takes() -> None:
    network = NETWORKS["mtee_mosei"]
    contract = registry.get("mtee").contract(network.config)
    steps = [len(s.inputs["text"]) for s in real_samples(contract, network, 40)]
    assert steps == [min(n, 20) for n in histograms.lengths("mosi_utterance")["tokens"][:40]]


@pytest.mark.parametrize("name", [n for n, network in NETWORKS.items() if network.real])
def test_real_items_fit_what_the_authors_pad_to_and_say_what_is_assumed(name: str) -> None:
    network = NETWORKS[name]
    assert network.real is not None
    assert network.original is not None
    contract = registry.get(network.system).contract(network.config)
    for sample in real_samples(contract, network, 12):
        sizes = (
            (d, n) for s in contract.features for d, n in zip(s.dims[1:], sample.inputs[s.name].shape, strict=True)
        )
        assert all(0 < n <= network.longest[d] for d, n in sizes if isinstance(d, str))
    assert network.real.note or name == "cmerc_meld"


def test_items_without_lengths_are_drawn_too() -> None:
    network = NETWORKS["facialmmt_face"]
    contract = registry.get(network.system).contract(network.config)
    assert len(random_samples(contract, network.lengths, 3)) == 3


def given_to_tools(product: Path) -> dict[str, np.ndarray]:
    """Puts beside `product` what a tool is given; returns the inputs."""
    arrays = {"x": np.ones((4, 3, 5), np.float32)}
    np.savez(product.parent / "inputs.npz", allow_pickle=False, **arrays)
    product.rename(product.with_name("plain.onnx"))
    return arrays


GIVES_BACK = """
import json, pathlib, shutil, sys
given, out = map(pathlib.Path, sys.argv[1:])
shutil.copy(given / "plain.onnx", out / "own.onnx")
(out / "result.json").write_text(json.dumps({"model": str(out / "own.onnx"), "did": "copied it"}))
"""
FAILS = """
print("something else")
raise ValueError("no such operator")
"""
NEVER_ENDS = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(pathlib.Path(sys.argv[2]) / "pid").write_text(str(child.pid))
time.sleep(600)
"""


@pytest.fixture
def tool(tmp_path: Path) -> Callable[..., Other]:
    """A tool whose environment is this one, by the program that it runs."""

    def make(name: str, program: str, limit: float = 60) -> Other:
        script = tmp_path / f"{name}.py"
        script.write_text(program)
        return Other(Path(sys.executable), script, Installed("1.0", "installed as it asks"), limit)

    return make


def test_the_file_of_a_tool_is_timed_and_what_it_cannot_do_becomes_a_line(
    product: Path, tool: Callable[..., Other]
) -> None:
    arrays = given_to_tools(product)
    copies, fails = tool("copies", GIVES_BACK), tool("fails", FAILS)
    ways = {
        BASE: lambda: lambda: arrays["x"] @ np.ones((5, 7), np.float32),
        "copies": partial(copies.make, product.parent, 0, 1),
        "fails": partial(fails.make, product.parent, 0, 1),
        "missing": partial(Other(Path(), Path(), Installed(problem="no such package")).make, product.parent, 0, 1),
    }
    rows, failed = compare(ways, rounds=2)
    assert [(row["name"], row["max_abs"]) for row in rows] == [(BASE, 0.0), ("copies", 0.0)]
    assert rows[1]["p50_ms"] > 0
    assert copies.did == "copied it"
    assert failed == {"fails": "ValueError: no such operator", "missing": "no such package"}


def test_a_tool_past_its_limit_becomes_a_line_and_nothing_of_it_goes_on(
    product: Path, tool: Callable[..., Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = product.parent / "stuck" / "pid"

    def communicate(process: Any, timeout: float | None = None) -> Any:
        """Its time begins when its child has."""
        while timeout is not None and not (begun.exists() and begun.read_text()):
            assert process.poll() is None
            time.sleep(0.01)
        return as_ever(process, timeout=None if timeout is None else 0.1)

    as_ever = subprocess.Popen.communicate
    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    arrays = given_to_tools(product)
    stuck = tool("stuck", NEVER_ENDS, limit=2)
    plain = partial(default_session, product.with_name("plain.onnx"), arrays, 0, 1)
    rows, failed = compare({BASE: plain, "stuck": partial(stuck.make, product.parent, 0, 1)}, rounds=1)
    assert [row["name"] for row in rows] == [BASE]
    assert failed == {"stuck": "not done within 2 s"}
    assert ended(int(begun.read_text()))


def ended(pid: int, within: float = 60) -> bool:
    """Whether a process is gone, or is about to be collected: one that is not killed sleeps for longer."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        state = "Z"
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_encoder_that_other_tools_take_is_the_networks_own() -> None:
    assert [name for name, network in NETWORKS.items() if network.roberta] == ["tab_text"]
    network = NETWORKS["tab_text"]
    assert network.roberta is not None
    contract = registry.get(network.system).contract(network.config)
    tokens = next(s for s in contract.inputs if s.name == network.roberta["tokens"])
    config = network.roberta["config"]
    assert (config["vocab_size"], config["pad_token_id"]) == (tokens.below, tokens.padding)
    assert (config["hidden_size"], config["num_hidden_layers"], config["type_vocab_size"]) == (1024, 24, 1)
