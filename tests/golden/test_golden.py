"""Every golden case of a directory: equal to the authors' code through the public paths.

`pytest tests/golden --golden-dir DIR` runs any directory of <system>/<case>/case.json.
"""

from __future__ import annotations

from pathlib import Path

import cmerc_adapters
import emt_adapters
import emt_data_adapters
import pytest
from case import CannotMap, Case, find_cases

ADAPTERS = {**cmerc_adapters.ADAPTERS, **emt_adapters.ADAPTERS, **emt_data_adapters.ADAPTERS}
"""By model; where two systems have a model of one name, by `<system>/<model>`."""
TOLERANCES = {**cmerc_adapters.TOLERANCES}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "folder" in metafunc.fixturenames:
        found = find_cases(Path(metafunc.config.getoption("--golden-dir")))
        metafunc.parametrize("folder", found, ids=[f"{f.parent.name}/{f.name}" for f in found])


def test_golden(folder: Path) -> None:
    case = Case.load(folder)
    model = case.content["model"]
    if f"{case.content.get('system')}/{model}" in ADAPTERS:
        model = f"{case.content['system']}/{model}"
    if model not in ADAPTERS:
        pytest.fail(f"cannot map this case: no adapter for system {case.content.get('system')!r}, model {model!r}")
    try:
        found = ADAPTERS[model](case)
    except CannotMap as reason:
        pytest.fail(f"cannot map this case: {reason}")
    problems = case.compare(found, TOLERANCES.get(model))
    assert not problems, "\n".join(problems)


def test_there_are_cases(request: pytest.FixtureRequest) -> None:
    directory = Path(request.config.getoption("--golden-dir"))
    assert find_cases(directory), f"{directory} has no <system>/<case>/case.json"
