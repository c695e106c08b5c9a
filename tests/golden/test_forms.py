"""Forms of golden cases that the shipped ones do not have: made of those, and run as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from case import Case
from test_golden import test_golden as run_case

SHIPPED = Path(__file__).parent / "data"
Change = Callable[[Case], Case]


def split_left_out(*kinds: str) -> Change:
    """The case without the arrays of these splits."""
    starts = tuple(start for kind in kinds for start in (kind, f"raw_{kind}"))

    def change(case: Case) -> Case:
        inputs = {n: a for n, a in case.inputs.items() if not n.startswith(starts)}
        assert len(inputs) < len(case.inputs)
        return replace(case, inputs=inputs, outputs={n: a for n, a in case.outputs.items() if not n.startswith(starts)})

    return change


def configured(**options: Any) -> Change:
    """The case with other options, and without the files that it may bring."""
    return lambda case: replace(case, content=case.content | {"config": case.config | options})


def sims_alone(case: Case) -> Case:
    inputs, outputs = ({n: a for n, a in x.items() if n.startswith("sims")} for x in (case.inputs, case.outputs))
    return replace(case, inputs=inputs, outputs=outputs)


def of_mosei(case: Case) -> Case:
    inputs, outputs = (
        {n.replace("mosi", "mosei"): a for n, a in x.items() if n.startswith("mosi")}
        for x in (case.inputs, case.outputs)
    )
    return replace(case, inputs=inputs, outputs=outputs)


def on_sims(case: Case) -> Case:
    """The same epoch, its validation under the names of SIMS: scores in -1..1, zero among the negative."""
    parts = [f"valid{i}" for i in range(2)]
    scores = np.concatenate([case.outputs[f"{p}.pred_m"].ravel() for p in parts]).clip(-1, 1)
    truths = np.concatenate([case.inputs[f"{p}.labels"].ravel() for p in parts]).clip(-1, 1)
    found = {
        "valid.Mult_acc_2": ((scores > 0) == (truths > 0)).mean(),
        "valid.MAE": np.abs(scores - truths).mean(),
        "valid.Corr": np.corrcoef(scores, truths)[0, 1],
    }
    kept = {n: a for n, a in case.outputs.items() if "acc" not in n and "F1" not in n}
    outputs = kept | {n: np.asarray([v]) for n, v in found.items()}
    return replace(configured(datasetName="sims")(case), outputs=outputs)


FORMS: dict[str, tuple[str, Change]] = {
    "IEMOCAP as arrays": ("mtee/data_iemocap", configured()),
    "IEMOCAP unaligned, as arrays": ("mtee/data_iemocap", configured(aligned=False)),
    "IEMOCAP zero-shot as arrays": ("mtee/data_iemocap_zsl1", configured()),
    "IEMOCAP with a few-shot index, which the original ignores": ("mtee/data_iemocap", configured(fsl=2)),
    "CMU-MOSEI as arrays": ("mtee/data_mosei_emo", configured()),
    "missing data without valid": ("emt/emt_masks", split_left_out("valid")),
    "missing data of test alone": ("emt/emt_masks", split_left_out("train", "valid")),
    "normalisation without test": ("emt/emt_sims_normalise", split_left_out("test")),
    "an epoch without validation": ("emt/emt_train_epoch", split_left_out("valid")),
    "an epoch on SIMS": ("emt/emt_train_epoch", on_sims),
    "metrics of SIMS alone": ("emt/emt_metrics", sims_alone),
    "metrics of MOSEI alone": ("emt/emt_metrics", of_mosei),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_case_of_another_form_is_mapped(form: str, tmp_path: Path) -> None:
    name, change = FORMS[form]
    case = change(Case.load(SHIPPED / name))
    (tmp_path / "case.json").write_text(json.dumps(case.content))
    np.savez(tmp_path / "inputs.npz", **case.inputs)
    np.savez(tmp_path / "outputs.npz", **case.outputs)
    for file in case.folder.glob("*.safetensors"):
        shutil.copyfile(file, tmp_path / file.name)
    run_case(tmp_path)


def test_a_case_without_outputs_is_no_agreement() -> None:
    case = Case.load(SHIPPED / "emt" / "emt_metrics")
    assert replace(case, outputs={}).compare({}) == ["no outputs: there is nothing to compare"]
