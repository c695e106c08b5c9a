"""Answers of files in object storage: against moto's server, which speaks S3, through the same code as against AWS.

`MER_MOTO` names the interpreter of an environment with it: `pip install 'moto[s3,server]'`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Mer
from pyarrow import fs
from small_scale import same, written

NAMED = os.environ.get("MER_MOTO")
pytestmark = pytest.mark.skipif(not NAMED, reason="MER_MOTO names no interpreter with moto's server")
DATA = Path(__file__).parent / "data"
BUNDLE, LINES = DATA / "bundles" / "cmerc", DATA / "small" / "dialogues.jsonl"
KEY, SECRET = "AKIDOFATEST", "wordofatest"
COPIES, BLOCK = 20, "0.01"


@dataclass(frozen=True)
class Storage:
    """A running server, and the address of a folder in a bucket with two files."""

    endpoint: str
    files: fs.S3FileSystem

    @property
    def folder(self) -> str:
        return f"s3://bucket/dialogues/?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def write(self, name: str, content: bytes) -> None:
        with self.files.open_output_stream(f"bucket/dialogues/{name}") as stream:
            stream.write(content)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files with the same dialogues, each many times under names of its own."""
    root = tmp_path_factory.mktemp("data")
    head, *lines = [json.loads(line) for line in LINES.read_text().splitlines() if line.strip()]
    for file in ("a", "b"):
        many = [d | {"dialogue": f"{d['dialogue']}-{n}"} for n in range(COPIES) for d in lines]
        written = [json.dumps(d) for d in (head, *many)]
        (root / f"{file}.jsonl").write_text("\n".join([*written, ""]))
    return root


@pytest.fixture
def storage(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(NAMED), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (tmp_path / "moto.log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as server:
        try:
            _await(port)
            endpoint = f"127.0.0.1:{port}"
            files = fs.S3FileSystem(
                access_key=KEY,
                secret_key=SECRET,
                endpoint_override=endpoint,
                scheme="http",
                region="us-east-1",
                allow_bucket_creation=True,
            )
            files.create_dir("bucket")
            found = Storage(endpoint, files)
            for file in sorted(data.iterdir()):
                found.write(file.name, file.read_bytes())
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            yield found
        finally:
            server.kill()


def _await(port: int) -> None:
    for _ in range(600):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("moto does not listen")


@pytest.mark.parametrize("workers", [["--shards", "2"], ["--cluster", "local", "--shards", "2"]], ids=["shards", "ray"])
def test_a_folder_of_a_bucket_is_answered_as_one_of_this_machine(
    mer: Mer, storage: Storage, data: Path, tmp_path: Path, workers: list[str]
) -> None:
    words = ["--runtime", "onnxruntime", "--block", BLOCK, "--json", "--quiet", *workers]
    code, said, problem = mer("infer", BUNDLE, storage.folder, "-o", tmp_path / "far", *words)
    assert code == 0, problem
    near = [*words[: -len(workers)], "--shards", "1"]
    assert mer("infer", BUNDLE, data, "-o", tmp_path / "near", *near)[0] == 0
    assert json.loads(said)["blocks"] > 4
    assert same(written(tmp_path / "far"), written(tmp_path / "near"))
    manifest = json.loads((tmp_path / "far" / "manifest.json").read_text())
    assert [i["name"] for i in manifest["inputs"]] == [f"s3://bucket/dialogues/{n}.jsonl" for n in "ab"]


def test_a_run_goes_on_and_an_object_that_changed_is_refused_by_name(
    mer: Mer, storage: Storage, tmp_path: Path
) -> None:
    # The key in the address, which nobody is to read in what is written.
    address = storage.folder.replace("s3://", f"s3://{KEY}:{SECRET}@")
    words = ["infer", BUNDLE, address, "-o", tmp_path / "out", "--shards", "1", "--block", BLOCK, "--json", "--quiet"]
    code, said, problem = mer(*words)
    assert code == 0, problem
    assert json.loads(mer(*words)[1])["done_before"] == json.loads(said)["blocks"]
    assert SECRET not in (tmp_path / "out" / "manifest.json").read_text()
    storage.write("a.jsonl", LINES.read_bytes())
    code, _, problem = mer(*words)
    assert (code, len(problem.splitlines())) == (2, 1)
    assert "s3://bucket/dialogues/a.jsonl as it was before it changed" in problem
    assert SECRET not in problem


def test_what_is_not_in_a_bucket_is_one_sentence(mer: Mer, storage: Storage, tmp_path: Path) -> None:
    for name in ("s3://bucket/nothing.jsonl", "s3://none/dialogues/"):
        address = storage.folder.replace("s3://bucket/dialogues/", name)
        code, _, problem = mer("infer", BUNDLE, address, "-o", tmp_path / "out", "--shards", "1", "--quiet")
        assert (code, len(problem.splitlines())) == (2, 1)
        assert name.rstrip("/") in problem
