"""`mer` in a process in which importing some packages is an error, one command after another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parent.parent
LOOP = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
import cli
for line in sys.stdin:
    sys.argv, code, out, err = ["mer", *json.loads(line)], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


class Without:
    """Starting Python and importing what a command needs takes as long as most small commands: it is done once.

    Used as a context manager, which ends the process.
    """

    def __init__(self, modules: Iterable[str], cwd: Path = ROOT, env: Mapping[str, str] | None = None):
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOP, json.dumps(list(modules))],
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def mer(self, *words: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output, standard error of a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([*map(str, words)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"mer {words[0]} ended its process"
        code, out, err = json.loads(answer)
        return code, out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
