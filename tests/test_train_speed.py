"""What training saves: padding by batches of like length, and memory that goes from one step to the next."""

from __future__ import annotations

import platform
import resource

import numpy as np
import pytest
import torch
from small_bundle import CONFIG
from small_training import trained
from two_processes import preset

from mer_export import registry
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from train.batches import by_length, in_batches
from train.memory import kept_between_steps
from train.recipe import protocol_class, recipe

SIZE = 8


def dialogues(count: int) -> list[Sample]:
    """Of 1 to 33 utterances, most of them short, as MELD's are."""
    sizes = np.random.default_rng(0).geometric(0.1, count).clip(max=33)
    return [Sample(f"d{i}", {"audio": np.zeros((n, 8), np.float32)}, ("",) * n) for i, n in enumerate(sizes)]


def test_batches_of_like_length_hold_every_item_once_and_less_padding() -> None:
    contract = registry.get("cmerc").contract(registry.get("cmerc").parse(CONFIG))
    samples = dialogues(203)
    torch.manual_seed(0)
    found = by_length(samples, SIZE, contract)
    assert sorted(s.id for s in found) == sorted(s.id for s in samples)

    def steps(order: list[Sample]) -> int:
        return sum(len(b) * max(len(s.units) for s in b) for b in in_batches(order, SIZE))

    assert steps(found) < 0.6 * steps(samples)
    # Not from short to long, and another order of the same items meets others.
    longest = [max(len(s.units) for s in b) for b in in_batches(found, SIZE)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
    again = by_length(samples[::-1], SIZE, contract)
    assert {frozenset(s.id for s in b) for b in in_batches(found, SIZE)} != {
        frozenset(s.id for s in b) for b in in_batches(again, SIZE)
    }


def test_a_run_on_batches_of_like_length_trains() -> None:
    phase, said = trained("tab", "always", "group_by_length=true")
    assert phase.config.group_by_length
    assert said != trained("tab", "always")[1]


@pytest.mark.parametrize(
    ("system", "sets", "why"),
    [
        ("cmerc", ("protocol.semantics=batch",), "semantics=batch"),
        ("cmerc", ("protocol.semantics=single", "protocol.shuffle=false"), "shuffle=false"),
        ("mtee", ("protocol.shuffle=false",), "shuffle=false"),
        ("facialmmt", ("protocol.by_dialogue=true",), "by_dialogue=true"),
        ("facialmmt", ("protocol.by_dialogue=false",), None),
        ("tab", (), None),
    ],
)
def test_batches_that_a_protocol_gives_are_not_made_otherwise(
    system: str, sets: tuple[str, ...], why: str | None
) -> None:
    config = preset(system, "group_by_length=true", *sets)
    protocol = protocol_class(system)(recipe(system).settings.model_validate(config.protocol))
    given = protocol.given_batches()
    assert (given is None) == (why is None)
    assert why is None or why in given


def test_a_run_whose_batches_are_given_is_refused() -> None:
    with pytest.raises(UsageError, match=r"group_by_length does not go with protocol.semantics=batch"):
        trained("cmerc", "never", "group_by_length=true", "protocol.semantics=batch")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_memory_of_a_step_is_that_of_the_step_before() -> None:
    def pages() -> int:
        """Pages that the kernel gave anew for three tensors of 64 MiB, one after the other."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            torch.empty(2**24).fill_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    outside = pages()
    with kept_between_steps():
        pages()
        inside = pages()
    assert inside < outside / 100
    assert pages() > outside / 2
