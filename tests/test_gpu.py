"""What only a machine with a GPU can show: its answers are those of the CPU, from any thread, shape by shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_bundle import make_bundle, make_samples, randomise

from mer_export.agreement.error import output_error
from mer_export.agreement.policy import RULES
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from mer_export.errors import NotAvailableError, UnsupportedError, UsageError
from mer_export.exporters import export_variant
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import backend_problem, known_backends, open_session
from runtimes.backends.way import Way, find_graphs, find_ways
from runtimes.predict.predictor import Predictor

torch = pytest.importorskip("torch")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def ways(bundle: Bundle) -> list[Way]:
    found = [w for w in [*find_ways(bundle), *find_graphs(bundle)] if w.options.on_gpu and not w.why_not]
    assert {w.backend for w in found} >= {"torch", "torchscript", "exported_program"}
    return found


@gpu
def test_every_way_on_a_gpu_gives_the_answers_of_the_cpu_for_every_shape_that_comes(exported: Bundle) -> None:
    contract, output = exported.manifest.contract, exported.manifest.task.output
    failures = []
    for way in ways(exported):
        rule = RULES[way.precision]
        with way.open(exported) as session, open_session(exported, None, "torch") as reference:
            # The same shape again after another one: a captured graph reads what came last.
            for size, seed in ((2, 0), (3, 1), (2, 2)):
                samples = [s for s in make_samples(12, seed=seed) if session.shape.holds(s.lengths(contract))][:size]
                arrays = collate(samples, contract, session.bucket)
                wanted, found = reference.run(arrays)[output], session.run(arrays)[output]
                error = output_error(output, [wanted], [found], rule.atol, rule.rtol)
                if not error.agrees:
                    failures.append(f"{way.name}: {error.size}")
    assert not failures


@gpu
def test_threads_that_share_a_predictor_on_a_gpu_get_their_own_answers(exported: Bundle) -> None:
    samples = make_samples(16, seed=5)
    for way in ways(exported):
        if way.options.reduced or way.fixed:
            continue
        with Predictor(exported, way.backend, way.options) as predictor:
            alone = [predictor.scores([s])[0] for s in samples]
            with ThreadPoolExecutor(8) as pool:
                together = list(pool.map(lambda s: predictor.scores([s])[0], samples * 20))
        # PyTorch compiles TorchScript anew after its first calls, which rounds otherwise.
        rule = RULES["fp32"]
        error = output_error("scores", alone * 20, together, rule.atol, rule.rtol)
        assert error.agrees, f"{way.name}: {error.size}"


@gpu
def test_tensors_on_a_gpu_stay_there_and_give_the_answers_of_arrays(exported: Bundle) -> None:
    samples = make_samples(3, seed=1)
    for way in ways(exported):
        if way.backend not in ("torch", "onnxruntime") or (way.options.cuda_graph and way.backend == "onnxruntime"):
            continue
        with way.open(exported) as session:
            given = collate(samples, session.contract, session.bucket)
            found = session.run_tensors({n: torch.from_numpy(a).to("cuda") for n, a in given.items()})
            rule = RULES[way.precision]
            for name, wanted in session.run(given).items():
                assert found[name].is_cuda
                error = output_error(name, [wanted], [found[name].cpu().numpy()], rule.atol, rule.rtol)
                assert error.agrees, f"{way.name}: {error.size}"


@gpu
def test_a_tensorrt_engine_is_built_says_its_layers_and_gives_the_answers_of_the_cpu(tmp_path: Path) -> None:
    if problem := backend_problem("tensorrt", SessionOptions(device="cuda")):
        pytest.skip(problem)
    bundle = make_bundle(tmp_path / "bundle")
    randomise(bundle)
    samples = [s for s in make_samples(8) if len(s.units) <= 4]
    for precision in ("fp32", "fp16"):
        variant = export_variant(bundle, "tensorrt", Bucket(utterances=4), precision=precision, example=samples)
        assert precision in variant.options["layers"]
        trusted = Bundle.open(bundle.root, trust=True)
        rule = RULES[precision]
        with (
            open_session(trusted, variant, "tensorrt", SessionOptions(device="cuda")) as session,
            open_session(trusted, None, "torch") as reference,
            ThreadPoolExecutor(4) as pool,
        ):
            arrays = [collate([s], session.contract, session.bucket) for s in samples]
            wanted = [reference.run(a)["log_prob"] for a in arrays]
            found = [f["log_prob"] for f in pool.map(session.run, arrays)]
            error = output_error("log_prob", wanted, found, rule.atol, rule.rtol)
            assert error.agrees, f"{precision}: {error.size}"


@gpu
def test_a_gpu_that_is_not_there_is_named_with_those_that_are(exported: Bundle) -> None:
    with pytest.raises(NotAvailableError, match=r"no device cuda:99.*cuda:0"):
        open_session(exported, None, "torch", SessionOptions(device="cuda:99"))


def test_precisions_that_a_runtime_makes_on_a_gpu_are_refused_on_the_cpu(exported: Bundle) -> None:
    with pytest.raises(UnsupportedError, match=r"torch does not run fp16 on cpu: pass --runtime with one of"):
        Predictor(exported, "torch", precision="fp16")
    for backend in ("torch", "onnxruntime"):
        with pytest.raises(UnsupportedError, match=f"{backend} does not run tf32 on cpu: on a GPU some do"):
            Predictor(exported, backend, precision="tf32")
    with pytest.raises(UnsupportedError, match="makes no bf16 of fp32 on cpu"):
        open_session(exported, None, "torch", SessionOptions(reduced="bf16"))
    assert known_backends()["torch"].stored("bf16", "cuda") == "fp32"


def test_a_device_that_no_runtime_knows_is_refused(exported: Bundle) -> None:
    for wrong in ("gpu", "cuda:", "cuda:-1", "cpu:0"):
        with pytest.raises(UsageError, match=f"device '{wrong}' is none"):
            open_session(exported, None, "torch", SessionOptions(device=wrong))
