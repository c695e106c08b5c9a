"""Starts the project's own modules, whatever else bears their names.

`cli`, `train` and `runtimes` are names that a working directory, PYTHONPATH or another package may have too. The
`mer` command and every process that it starts begin here: these names are then looked for beside this package and
nowhere else. Third-party packages are found as always, for the search path itself stays as it is.

    python -P launcher.py MODULE ARGUMENTS...    calls main() of a module of ours; `module_command` makes this line
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).absolute().parents[1]
"""What holds the packages: a clone, or the site-packages that they were installed into."""
OWN = frozenset({"cli", "mer_export", "runtimes", "train"})


class OwnModules(MetaPathFinder):
    """Finds the top-level modules of this project in `ROOT`, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [str(ROOT)], target) if fullname in OWN else None


def module_command(module: str, *arguments: str) -> list[str]:
    """The words that run `main()` of one of our modules in a fresh interpreter, wherever that is started."""
    return [sys.executable, "-P", str(Path(__file__).absolute()), module, *arguments]


def main() -> None:
    """The `mer` command."""
    _keep_standard_files()
    try:
        _run("cli")
    except KeyboardInterrupt:
        # While modules are still being imported; later the command line says it.
        sys.exit(_interrupted())


def _interrupted() -> int:
    print("mer: interrupted", file=sys.stderr)
    return 130


def _keep_standard_files() -> None:
    """Opens what was closed as the null device: else the next file that is opened would take the place of the output,
    and whatever a library prints would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _run(module: str) -> None:
    if not any(isinstance(finder, OwnModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, OwnModules())
    import_module(module).main()


if __name__ == "__main__":
    del sys.argv[0]
    _run(sys.argv[0])
