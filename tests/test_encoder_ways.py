"""What runs the encoders of a bundle where a goal was named."""

from __future__ import annotations

import pytest

from mer_export.bucket import Bucket
from runtimes.predict.machine_profile import EncoderRow, Goal, Profile, encoder_ways

SHORT, LONG = Bucket(tokens=8), Bucket(tokens=32)
AUDIO = ("audio", "whisper")


def row(runtime: str, times: dict[int, float], bucket: Bucket = SHORT, precision: str = "fp32") -> EncoderRow:
    return EncoderRow(
        input="audio",
        encoder="whisper",
        items=1,
        lengths=bucket,
        runtime=runtime,
        precision=precision,
        item_ms=times,
    )


def profile(*rows: EncoderRow) -> Profile:
    return Profile.model_construct(encoders=list(rows))


@pytest.mark.parametrize(
    ("goal", "wanted"),
    [("latency", ("onnxruntime", 1)), ("throughput", ("openvino", 16)), ("budget=9ms", ("openvino", 16))],
)
def test_a_goal_takes_the_runtime_and_batch_that_are_best_for_it(goal: str, wanted: tuple[str, int]) -> None:
    rows = row("onnxruntime", {1: 2.0, 16: 1.5}), row("openvino", {1: 3.0, 16: 1.0})
    (way,) = encoder_ways(profile(*rows), Goal.parse(goal)).values()
    assert (way["backend"], way["batch"]) == wanted


def test_on_a_gpu_its_own_times_choose_and_those_of_the_processor_choose_nothing() -> None:
    slow, other = row("onnxruntime cuda", {1: 3.0}), row("openvino", {1: 0.1})
    goal = Goal.parse("latency")
    found = encoder_ways(profile(slow, row("torchscript cuda", {1: 9.0}), other), goal, kind="cuda")
    assert found == {AUDIO: {"backend": "onnxruntime", "batch": 1}}
    assert encoder_ways(profile(other), goal, kind="cuda") == {}


def test_the_times_of_all_lengths_count_and_a_runtime_that_lacks_one_does_not() -> None:
    rows = [row("onnxruntime", {1: 1.0}), row("onnxruntime", {1: 9.0}, LONG)]
    slower = [row("openvino", {1: 2.0}), row("openvino", {1: 3.0}, LONG)]
    goal = Goal.parse("latency")
    assert encoder_ways(profile(*rows, *slower), goal)[AUDIO]["backend"] == "openvino"
    assert encoder_ways(profile(*rows, row("openvino", {1: 0.1})), goal)[AUDIO]["backend"] == "onnxruntime"


def test_no_precision_is_chosen_and_a_runtime_that_was_named_holds() -> None:
    rows = row("openvino bf16", {1: 0.1}, precision="bf16"), row("openvino", {1: 2.0}), row("onnxruntime", {1: 3.0})
    goal = Goal.parse("latency")
    assert encoder_ways(profile(*rows), goal) == {AUDIO: {"backend": "openvino", "batch": 1}}
    assert encoder_ways(profile(*rows), goal, "onnxruntime") == {AUDIO: {"backend": "onnxruntime", "batch": 1}}
    assert encoder_ways(profile(), goal) == {}
