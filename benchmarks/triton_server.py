"""A real Triton for tests and benchmarks: the server that the wheel of pytriton holds, in an environment of its own.

    python3 -m benchmarks.triton_server DIR             # makes the environment, prints its interpreter

It has the Python backend alone, so the models of the buckets run their .onnx files there (`tools/onnx_in_triton.py`),
under the configurations that `mer triton` wrote but for the name of the backend.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.environments import SCRIPTS, TRITON, child, install
from benchmarks.http_load import Listening
from mer_export.errors import NotAvailableError
from runtimes.triton.config import VERSION, protobuf
from runtimes.triton.config import text as config_text
from runtimes.triton.repository import CONFIG

START_S = 120
FOUND = "import pathlib, sys, pytriton; print(pathlib.Path(pytriton.__file__).parent, '%d.%d' % sys.version_info[:2])"


@dataclass(frozen=True)
class Triton(Listening):
    """Where a server listens over HTTP, and over gRPC."""

    grpc_port: int

    @property
    def http(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def grpc(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    def batches(self, router: str, models: Iterable[str]) -> tuple[int, int]:
        """How many items a router was asked for, and how many calls the models behind it have made of them."""
        return self._counted(router, "inference_count"), sum(self._counted(m, "execution_count") for m in models)

    def _counted(self, model: str, what: str) -> int:
        return int(json.loads(self.get(f"/v2/models/{model}/stats"))["model_stats"][0][what])


def stand_ins(repository: Path) -> None:
    """Gives every model of a repository that is not in Python the stand-in, in place."""
    from google.protobuf import text_format

    for file in repository.glob(f"*/{CONFIG}"):
        config = text_format.Parse(file.read_text(encoding="utf-8"), protobuf().ModelConfig())
        if config.backend == "python":
            continue
        config.backend = "python"
        for field in ("default_model_filename", "parameters", "optimization"):
            config.ClearField(field)
        file.write_bytes(config_text(config))
        shutil.copyfile(SCRIPTS / "onnx_in_triton.py", file.parent / VERSION / "model.py")


@contextmanager
def running(python: Path, repositories: Sequence[Path], scratch: Path) -> Iterator[Triton]:
    """Serves model repositories on this machine alone, for the block.

    Args:
        python: the interpreter of an environment with `nvidia-pytriton`.
        repositories: whose models are served.
        scratch: a directory for this server's files and its log.

    Raises:
        NotAvailableError: the server does not start; says the last lines of its log.
    """
    package, version = child([str(python), "-I", "-c", FOUND], START_S).split()
    backends, log = _backends(Path(package) / "tritonserver", version, scratch), scratch / "server.log"
    http, grpc = _free_ports(2)
    command = [
        str(Path(package) / "tritonserver" / "bin" / "tritonserver"),
        *(f"--model-repository={r}" for r in repositories),
        f"--backend-directory={backends}",
        *("--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
        *("--allow-metrics=false", "--exit-timeout-secs=5"),
    ]
    libraries = Path(package).with_name("nvidia_pytriton.libs")
    # The Python backend takes its packages from the interpreter that comes first, whatever PYTHONPATH is.
    places = {"PATH": f"{python.parent}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(libraries)}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=os.environ | places, start_new_session=True
        )
    try:
        _wait(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
        yield Triton("127.0.0.1", http, process, grpc)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _backends(server: Path, version: str, scratch: Path) -> Path:
    """A directory of backends that has the process for this version of Python beside the Python backend."""
    folder = scratch / "backends"
    shutil.copytree(server / "backends", folder, dirs_exist_ok=True)
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "python")
    return folder


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait(process: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(ready, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.1)
    lines = log.read_text(errors="replace").splitlines()
    wrong = [line for line in lines if line.startswith("E")] or lines
    raise NotAvailableError(f"Triton does not start: {' '.join(wrong[-3:])}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the environment."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.triton_server", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where the environment is made")
    python, found = install(TRITON, parser.parse_args(arguments).folder)
    if found.problem:
        raise SystemExit(found.problem)
    print(python)


if __name__ == "__main__":
    main()
