"""`mer package`: a manifest that KServe takes, and an image whose files alone serve the bundle.

There is no container engine here: the Dockerfile is read line by line and its files are laid out as it says, in a
folder in place of /, where its own command starts the server.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import Mer

from mer_export.bundle import WEIGHTS, Bundle
from mer_export.encoders.attached import attach
from mer_export.encoders.encoder import Encoder
from mer_export.encoders.signal.folder import write_signal_encoder
from mer_export.errors import NotAvailableError, UnsupportedError
from mer_export.exporters import onnx_file
from runtimes.deploy.needs import needs_of
from runtimes.deploy.requirements import pinned

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

DATA = Path(__file__).parent / "data"
BUNDLE, DIALOGUES = DATA / "bundles" / "cmerc", DATA / "small" / "dialogues.jsonl"
COMMENT, LINE = "#", re.compile(r"([A-Z]+) (.+)")
KNOWN = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle inside the image, asked with a token."""
    out = tmp_path_factory.mktemp("packed") / "image"
    words = [sys.executable, "cli.py", "package", str(BUNDLE), "--out", str(out), "--bake"]
    subprocess.run(words, check=True, cwd=DATA.parents[1], stdout=subprocess.DEVNULL)
    return out


def instructions(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "Dockerfile").read_text().splitlines()
    found = [LINE.fullmatch(line) for line in lines if not line.startswith(COMMENT)]
    assert all(found)
    return [(m[1], m[2]) for m in found if m]


def command(words: str) -> list[str]:
    """A command in the form that no shell reads."""
    found = json.loads(words[words.index("[") :])
    assert all(isinstance(word, str) for word in found)
    return list(found)


def test_every_line_of_the_dockerfile_is_one_that_is_known_and_its_server_is_nobody(packed: Path) -> None:
    lines = instructions(packed)
    said = dict(lines)
    assert {name for name, _ in lines} == KNOWN
    assert re.fullmatch(r"python:3\.\d+-slim", said["FROM"])
    user = said["USER"].split(":")
    assert all(number.isdigit() and int(number) > 0 for number in user)
    names = [name for name, _ in lines]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    for name, words in lines:
        if name == "COPY":
            source = words.split()[0]
            assert (packed / source).exists()
            assert "://" not in source
        elif name in ("RUN", "ENTRYPOINT", "CMD", "HEALTHCHECK"):
            assert command(words)


def test_the_requirements_are_pinned_to_what_is_installed_and_hold_no_torch(packed: Path) -> None:
    lines = (packed / "requirements.txt").read_text().splitlines()
    found = dict(line.split("==") for line in lines)
    assert {"numpy", "onnxruntime", "starlette", "uvicorn", "prometheus-client"} <= set(found)
    assert not {"torch", "transformers", "onnx", "openvino", "soundfile", "tokenizers"} & set(found)
    assert all(metadata.version(name) == version for name, version in found.items())


def test_the_image_holds_what_serving_reads_of_the_bundle_and_it_is_intact(mer: Mer, packed: Path) -> None:
    assert mer("verify", packed / "bundle")[0] == 0
    manifest = Bundle.open(packed / "bundle").manifest
    assert {v.format for v in manifest.variants} == {"onnx"}
    assert {v.precision for v in manifest.variants} == {"fp32"}
    assert WEIGHTS not in manifest.files
    assert not any(name.startswith(("train/", "samples/")) for name in manifest.files)


class Layout(NamedTuple):
    """The files of an image below a folder that stands for /, and the words that the container starts with."""

    root: Path
    words: list[str]
    healthcheck: list[str]
    environment: dict[str, str]

    def on(self, port: int, words: list[str]) -> list[str]:
        """The words for another port than that of the image."""
        return [w.replace("8080", str(port)) for w in words]


@pytest.fixture
def layout(packed: Path, tmp_path: Path) -> Layout:
    """What COPY and the pinned requirements bring, every file for reading only, and a folder for what is temporary."""
    root, place, found = tmp_path / "root", "/", dict(instructions(packed))
    for name, words in instructions(packed):
        if name == "WORKDIR":
            place = words
        elif name == "COPY":
            source, target = words.split()
            target = target.removeprefix("./") if target.startswith("/") else f"{place}/{target.removeprefix('./')}"
            end = root / target.lstrip("/")
            if source.endswith("/"):
                shutil.copytree(packed / source, end, dirs_exist_ok=True)
            else:
                end.mkdir(parents=True, exist_ok=True)
                shutil.copy(packed / source, end)
    token = root / "run/secrets/mer/token"
    token.parent.mkdir(parents=True)
    (token.parent / "..data").write_text("word\n")
    token.symlink_to("..data")
    _install(root / "site", (packed / "requirements.txt").read_text().splitlines())
    for path in [p for p in (root, *root.rglob("*")) if not p.is_symlink()]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def here(words: list[str]) -> list[str]:
        inside = [str(root) + w if w.startswith("/") else w for w in words]
        return [sys.executable, "-S", *inside[1:]]

    words = here([*command(found["ENTRYPOINT"]), *command(found["CMD"])])
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    said = dict(word.split("=") for word in found["ENV"].split())
    environment = said | {"HOME": str(scratch), "TMPDIR": str(scratch), "PYTHONPATH": str(root / "site")}
    return Layout(root, words, here(command(found["HEALTHCHECK"])), environment)


def _install(site: Path, lines: list[str]) -> None:
    """Of the packages here, those that are named and no other."""
    site.mkdir()
    for line in lines:
        distribution = metadata.distribution(line.split("==")[0])
        tops = {f.parts[0] for f in distribution.files or () if f.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            (site / top).symlink_to(distribution.locate_file(top))


def _without_privileges() -> None:
    """Rights of files hold for this process, also where it is the administrator's."""
    library = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        library.prctl(24, capability, 0, 0, 0)


@pytest.fixture
def running(layout: Layout) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        layout.on(0, layout.words),
        env=layout.environment,
        cwd=layout.root / "app",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_without_privileges,
    )
    yield process
    process.kill()
    process.communicate()


def test_the_files_of_the_image_alone_serve_the_bundle_to_a_user_who_may_write_nothing(
    mer: Mer, layout: Layout, running: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert running.stdout is not None
    told = running.stdout.readline()
    assert "serves cmerc (onnxruntime fp32, 2 workers)" in told, running.communicate()[1]
    assert "CapEff:\t0000000000000000" in Path(f"/proc/{running.pid}/status").read_text()
    port = urlsplit(told.split(" ")[0]).port or 0
    subprocess.run(layout.on(port, layout.healthcheck), check=True, env=os.environ | layout.environment)
    assert mer("infer", BUNDLE, DIALOGUES, "-o", tmp_path / "labels.jsonl")[0] == 0
    expected = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    body, form = DIALOGUES.read_bytes(), {"Content-Type": "application/x-ndjson"}
    assert ask(port, body, form)[0] == 401
    status, answer = ask(port, body, form | {"Authorization": "Bearer word"})
    assert status == 200
    rows = [json.loads(line) for line in answer.splitlines()]
    assert [(r["unit"], r["label"]) for r in rows] == [(r["unit"], r["label"]) for r in expected]
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0


def ask(port: int, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/models/cmerc/predict", body, dict(headers))
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


PROBE = {
    "httpGet": {"path": str, "port": int},
    "periodSeconds?": int,
    "failureThreshold?": int,
    "timeoutSeconds?": int,
}
QUANTITIES = {"cpu": str, "memory": str}
FIELDS: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations": {"serving.kserve.io/deploymentMode": str}},
    "spec": {
        "predictor": {
            "minReplicas": int,
            "terminationGracePeriodSeconds": int,
            "automountServiceAccountToken": bool,
            "securityContext": {
                "runAsNonRoot": bool,
                "runAsUser": int,
                "runAsGroup": int,
                "fsGroup": int,
                "seccompProfile": {"type": str},
            },
            "containers": [
                {
                    "name": str,
                    "image": str,
                    "args": [str],
                    "env": [{"name": str, "value": str}],
                    "ports": [{"containerPort": int, "protocol": str}],
                    "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
                    "startupProbe": PROBE,
                    "readinessProbe": PROBE,
                    "livenessProbe": PROBE,
                    "lifecycle": {"preStop": {"exec": {"command": [str]}}},
                    "securityContext": {
                        "allowPrivilegeEscalation": bool,
                        "readOnlyRootFilesystem": bool,
                        "capabilities": {"drop": [str]},
                    },
                    "volumeMounts": [{"name": str, "mountPath": str, "subPath?": str, "readOnly?": bool}],
                }
            ],
            "volumes": [
                {
                    "name": str,
                    "emptyDir?": {},
                    "persistentVolumeClaim?": {"claimName": str, "readOnly": bool},
                    "secret?": {"secretName": str, "defaultMode": int},
                }
            ],
        }
    },
}
"""Fields of serving.kserve.io/v1beta1 InferenceService (a predictor with containers of its own is a PodSpec) and of
core/v1 that we write, with their types; those with a question mark may be left out."""


def hold(value: Any, fields: Any, where: str = "") -> None:
    """Asserts that a manifest has these fields and no other."""
    if isinstance(fields, list):
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            hold(item, fields[0], f"{where}[{number}]")
    elif isinstance(fields, dict):
        assert isinstance(value, dict), where
        names = {name.rstrip("?"): own for name, own in fields.items()}
        assert {n for n in fields if not n.endswith("?")} <= set(value) <= set(names), where
        for name, own in value.items():
            hold(own, names[name], f"{where}.{name}")
    else:
        assert type(value) is fields, where


@pytest.mark.parametrize("words", [["--bake"], ["--no-token", "--claim", "models", "--name", "meld-fp32"]])
def test_the_manifest_has_the_fields_of_an_inference_service(mer: Mer, tmp_path: Path, words: list[str]) -> None:
    out = tmp_path / "out"
    code, said, err = mer("package", BUNDLE, "--out", out, *words, "--workers", "3", "--json")
    assert code == 0, err
    service = yaml.safe_load((out / "inferenceservice.yaml").read_text())
    hold(service, FIELDS)
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    pod = service["spec"]["predictor"]
    (container,) = pod["containers"]
    assert container["name"] == "kserve-container"
    assert container["env"] == [{"name": "PROTOCOL", "value": "v2"}]
    assert container["ports"][0]["containerPort"] == container["readinessProbe"]["httpGet"]["port"]
    assert container["resources"]["limits"]["cpu"] == "3"
    assert container["args"][-4:] == ["--workers", "3", "--threads", "1"]
    found = dict(instructions(out))
    assert container["args"] == command(found["CMD"])
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == found["USER"]
    volumes = {v["name"]: v for v in pod["volumes"]}
    mounts = {m["name"]: m for m in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    served = command(found["ENTRYPOINT"])[-1]
    assert served == f"/models/{service['metadata']['name']}"
    if "--bake" in words:
        assert set(volumes) == {"scratch", "token"}
        assert container["args"][container["args"].index("--token-file") + 1] == mounts["token"]["mountPath"] + "/token"
        assert json.loads(said)["secret"].split()[4] == volumes["token"]["secret"]["secretName"] == "cmerc-token"
    else:
        assert volumes["bundle"]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
        assert mounts["bundle"] == {"name": "bundle", "mountPath": served, "subPath": "cmerc", "readOnly": True}
        assert "--no-token" in container["args"]
        assert "bundle" not in {p.name for p in out.iterdir()}


def test_a_bundle_with_encoders_takes_what_they_read_with(tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(DATA / "bundles" / "emt", tmp_path / "emt"))
    assert needs_of(bundle).extras == ("cpu", "serve")
    audio = write_signal_encoder("mfcc", tmp_path / "audio", coefficients=5, pooling="mean")
    attach(bundle, {"audio": [Encoder.open(audio.root)]})
    bundle = Bundle.open(bundle.root)
    assert needs_of(bundle).extras == ("cpu", "media", "serve")
    assert needs_of(bundle, "openvino").extras == ("openvino", "media", "serve")
    assert needs_of(bundle, "openvino", "bf16").variants == needs_of(bundle).variants
    # What one file cannot hold, it names.
    (found,) = onnx_file.metadata(bundle, needs_of(bundle).variants[0])["encoders"]["audio"]
    assert found["sha256"] == Encoder.open(audio.root).identity.sha256
    assert found["input"]["rate"] == 16000
    assert onnx_file.metadata(bundle, needs_of(bundle).variants[0])["source"]["not_inside"] == ["encoders/audio/0"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--runtime", "torchscript"], 7, "runs onnxruntime or openvino on CPUs, not torchscript"),
        (["--precision", "fp16"], 7, "no variant in fp16 that onnxruntime or openvino runs: mer export"),
        (["--bake", "--claim", "models"], 2, "leave one of them out"),
        (["--no-token", "--token-secret", "mine"], 2, "leave --token-secret out"),
        (["--name", "Meld"], 2, "--name Meld: at most 63 small letters"),
        (["--memory", "lots"], 2, "write a whole number with Mi or Gi"),
    ],
)
def test_what_cannot_be_packaged_is_refused_and_nothing_is_written(
    mer: Mer, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    found, _, err = mer("package", BUNDLE, "--out", tmp_path / "out", *words)
    assert (found, said in err) == (code, True), err
    assert not any(tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_never_replaced(mer: Mer, tmp_path: Path) -> None:
    out, bundle = tmp_path / "out", shutil.copytree(BUNDLE, tmp_path / "bundle")
    assert mer("package", bundle, "--out", out)[0] == 0
    assert "pass --force" in mer("package", bundle, "--out", out)[2]
    assert mer("package", bundle, "--out", out, "--force", "--bake")[0] == 0
    assert (out / "bundle").exists()
    model = bundle / Bundle.open(out / "bundle").manifest.variants[0].model
    model.write_bytes(bytes(model.stat().st_size))
    assert mer("package", bundle, "--out", out, "--force", "--bake")[0] == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "out"]
    assert Bundle.open(out / "bundle").verify()
    (out / "thesis.tex").touch()
    assert "holds what mer package did not write" in mer("package", BUNDLE, "--out", out, "--force")[2]
    assert (out / "thesis.tex").exists()


def test_a_package_that_is_not_installed_here_is_named_with_its_extra(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy"]\n[project.optional-dependencies]\nserve = ["no-such-package-of-ours>=1"]\n'
    )
    assert list(pinned((), tmp_path)) == ["numpy"]
    with pytest.raises(NotAvailableError, match=r"no-such-package-of-ours is not installed: .*mer-export\[serve\]"):
        pinned(["serve"], tmp_path)


def test_torch_needs_another_kind_of_image() -> None:
    bundle = Bundle.open(BUNDLE)
    with pytest.raises(UnsupportedError, match="not torch"):
        needs_of(bundle, "torch")
