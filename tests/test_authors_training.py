"""The authors' loops that training is timed beside train what ours trains: the same losses from the same weights."""

from __future__ import annotations

import pytest
from small_training import CPU, SMALL, small

from benchmarks.authors_training import loop_of
from benchmarks.forms import FORMS
from benchmarks.training import no_dropout
from train.devices import computing, make_accelerator
from train.loop import Phase

SETTINGS = {
    "cmerc": ("protocol.semantics=batch", "protocol.calibrate=true", "protocol.contrast=true"),
    "facialmmt": ("protocol.gumbel=false", "protocol.colour_jitter=0"),
}
"""What the published recipe has and the small one has not, and nothing random whose shape depends on padding."""


@pytest.mark.parametrize("system", SMALL)
def test_the_authors_loop_has_the_losses_of_ours_epoch_after_epoch(system: str) -> None:
    config, settings, model, _, contract, items, difficulty = small(system, *SETTINGS.get(system, ()))
    with computing(config, CPU):
        phase = Phase(config, settings, model, contract, items[:-3], make_accelerator(config), difficulty)
        theirs = loop_of(phase)
        with no_dropout(phase.model), no_dropout(theirs.model):
            for number in range(2):
                ours = phase.epoch(number)["train"]["total"]
                assert theirs.epoch(number) == pytest.approx(ours, rel=1e-4), f"epoch {number + 1}"


def test_every_form_of_the_authors_stands_in_some_small_network() -> None:
    found = set()
    for system in SMALL:
        found |= {type(m) for m in small(system).model.modules()}
    assert set(FORMS) <= found
