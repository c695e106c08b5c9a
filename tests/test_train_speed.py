"""What training saves: padding by batches of like length, and memory that goes from one step to the next."""

from __future__ import annotations

import platform
import subprocess
import sys

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
from train.dropout import draw_fast
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


def test_fast_dropout_drops_what_it_should_and_gradients_go_where_values_stayed() -> None:
    layer = torch.nn.Dropout(0.3)
    source = draw_fast(torch.nn.Sequential(layer))
    x = torch.full((100, 1000), 2.0, requires_grad=True)
    found = layer(x)
    found.sum().backward()
    dropped = found == 0
    # Four standard deviations of so many independent draws.
    assert abs(dropped.double().mean() - 0.3) < 4 * (0.3 * 0.7 / x.numel()) ** 0.5
    torch.testing.assert_close(found[~dropped], torch.full_like(found[~dropped], 2 / 0.7), rtol=1e-4, atol=0)
    torch.testing.assert_close(x.grad, found.detach() / 2)
    pairs = (dropped[:, 1:] & dropped[:, :-1]).double().mean()
    assert abs(pairs - 0.09) < 0.005, "neighbours are drawn apart"
    source.seed(1)
    once = layer(x)
    assert not torch.equal(once, layer(x))
    source.seed(1)
    assert torch.equal(once, layer(x))
    assert torch.equal(layer.eval()(x), x)


def test_a_run_with_fast_dropout_is_the_same_every_time_and_not_that_without() -> None:
    first, again, without = (trained("mult", "never", f"fast_dropout={on}")[1] for on in ("true", "true", "false"))
    assert first == again
    assert first[0] != without[0]


PAGES = """
import ctypes, resource
from train.memory import kept_between_steps

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def given():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        block = libc.malloc(2**26)
        ctypes.memset(block, 1, 2**26)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

outside = given()
with kept_between_steps():
    given()
    inside = given()
print(outside, inside, given())
"""
"""Pages that the kernel gives for four blocks, one after the other, in a process that does nothing else."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_memory_of_a_step_is_that_of_the_step_before() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    outside, inside, after = map(int, done.stdout.split())
    assert inside < outside / 10
    assert after > outside / 2
