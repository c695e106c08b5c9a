"""AOTInductor packages: compiled once, proven in a process of their own, run where somebody vouches for them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import mtee_bundles
import numpy as np
import pytest
from small_bundle import make_bundle

from mer_export import trust
from mer_export.agreement.error import output_error
from mer_export.agreement.policy import RULES
from mer_export.bundle import Bundle, Variant
from mer_export.data.collate import collate
from mer_export.errors import BundleError, NotAvailableError, UnsupportedError, UntrustedError, UsageError
from mer_export.exporters import aot_inductor, export_variant
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import open_session
from runtimes.predict.predictor import Predictor

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, aot_inductor.COMPILERS)), reason="AOTInductor needs a C++ compiler"
)


CONFIG = mtee_bundles.config_of("transformer")
SAMPLES = mtee_bundles.make_samples(CONFIG)
Compiled = tuple[Bundle, dict[str, Variant]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A small bundle, one of its buckets compiled for the CPU in both precisions; this user has a key.

    Of attention and products: recurrent layers take five times as long to compile.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        bundle = mtee_bundles.make_bundle(tmp_path_factory.mktemp("compiled") / "bundle", "transformer")
        bucket = bundle.manifest.contract.buckets[-1]
        variants = {
            p: export_variant(bundle, "aot_inductor", bucket, precision=p, example=SAMPLES) for p in ("fp32", "bf16")
        }
    return Bundle.open(bundle.root, trust=True), variants


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_package_gives_the_answers_of_the_network_for_any_batch(compiled: Compiled, precision: str) -> None:
    bundle, variants = compiled
    contract, rule = bundle.manifest.contract, RULES[precision]
    package = open_session(bundle, variants[precision], "aot_inductor")
    largest = []
    with package as session, open_session(bundle, None, "torch") as reference:
        for size in (1, 3):
            arrays = collate(SAMPLES[:size], contract, variants[precision].lengths)
            wanted, found = reference.run(arrays), session.run(arrays)
            for name in wanted:
                error = output_error(name, [wanted[name]], [found[name]], rule.atol, rule.rtol)
                assert error.agrees
                largest.append(error.max_abs)
    # What is called bf16 was rounded.
    assert (max(largest) > RULES["fp32"].atol) == (precision == "bf16")


def test_a_bf16_package_has_passed_the_gate_and_is_taken_where_bf16_is_asked_for(compiled: Compiled) -> None:
    bundle, variants = compiled
    assert variants["bf16"].options["gate"]["units"] == len(SAMPLES)
    with Predictor(bundle, "aot_inductor", precision="bf16") as predictor:
        predictor.scores(SAMPLES)
        assert predictor.answered_by == [variants["bf16"].name]


def test_a_bf16_package_for_a_gpu_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UnsupportedError, match=r"packages for cuda are fp32, not bf16: .* --runtime torch"):
        export_variant(bundle, "aot_inductor", bundle.manifest.contract.buckets[0], precision="bf16", device="cuda")


def test_a_package_is_machine_code_that_runs_for_who_made_it_or_trusts_it_alone(
    compiled: Compiled,
) -> None:
    bundle, variant = compiled[0], compiled[1]["fp32"]
    stranger = Bundle.open(bundle.root)
    assert not trust.recognises(stranger, variant, [variant.model])
    with pytest.raises(UntrustedError, match="machine code that you did not export"):
        open_session(stranger, variant, "aot_inductor")


def test_a_package_is_not_run_on_a_device_that_it_was_not_compiled_for(compiled: Compiled) -> None:
    bundle, _ = compiled
    with pytest.raises(UsageError, match=r"no fp32 variant for runtime aot_inductor: .* --device cuda"):
        Predictor(bundle, "aot_inductor", SessionOptions(device="cuda"))


def test_compiling_for_a_device_that_is_not_here_says_so_before_any_work(bundle: Bundle) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(NotAvailableError, match="on a machine with a GPU alone"):
        export_variant(bundle, "aot_inductor", bundle.manifest.contract.buckets[0], device="cuda")


CRASH = """
import os, sys
for line in ("mer stage: was compiled", "W a warning", "mer stage: was loaded", "frame #0"):
    print(line, file=sys.stderr, flush=True)
os.kill(os.getpid(), 11)
"""


@pytest.mark.parametrize(
    ("script", "reason", "said"),
    [
        (CRASH, "signal 11 while it was loaded", ["W a warning", "frame #0"]),
        ("raise SystemExit('one line\\nits last word')", "its last word", ["one line", "its last word"]),
    ],
)
def test_a_package_that_ends_the_process_is_an_error_that_says_when_and_is_not_exported(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, script: str, reason: str, said: list[str]
) -> None:
    """What PyTorch 2.11 made of two networks with recurrent layers for a GPU ended the process that loaded it."""
    monkeypatch.setattr(aot_inductor, "module_command", lambda *_: [sys.executable, "-c", script])
    before = sorted(p.name for p in bundle.root.rglob("*"))
    with pytest.raises(UsageError, match=f"makes no package that runs: {reason}; it was not exported") as raised:
        export_variant(bundle, "aot_inductor", bundle.manifest.contract.buckets[0])
    assert raised.value.__notes__ == ["\n".join(said)]
    assert sorted(p.name for p in bundle.root.rglob("*")) == before


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def test_a_file_that_is_no_package_is_named(compiled: Compiled, tmp_path: Path) -> None:
    from runtimes.backends.aot_inductor import AotInductorSession
    from runtimes.backends.session import Artefact

    path = tmp_path / "model.aoti.pt2"
    path.write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(BundleError, match=f"runtime aot_inductor cannot load {path}"):
        AotInductorSession(Artefact(path, compiled[0].manifest.contract), SessionOptions())
