"""Moments of several chains in few passes: those of one chain after another, and only where they are the same."""

import pytest
import torch
from torch import nn

from compresskit.graph.trace import trace
from compresskit.passes.fuse.fusible import apply, find
from compresskit.passes.fuse.network import fuse, solve
from compresskit.passes.fuse.options import Fuse
from compresskit.passes.fuse.together import KeptMoments, beside, passes, rehearse
from compresskit.passes.moments import collect, gather_from, in_passes
from tests.graph.nets import Plain, batch, make

BACKWARDS = (("fc1", "fc2"), ("conv1", "conv2"))
FORWARDS = (("conv1", "conv2"), ("fc1", "fc2"))


class Batches:
    """Counts how often it is read."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        for seed in range(3):
            inputs = batch(Plain, 50, seed)
            yield inputs, torch.zeros(len(inputs))


def one_after_another(layers):
    """As `fuse` was before: each chain with a pass of its own."""
    network, batches = trace(make(Plain)), Batches()
    for pair in layers:
        fusible = find(network, pair, (2, 8, 8))
        sums = {fusible.request.name: fusible.request.zeros("cpu")}
        collect(network, [fusible.request], batches, sums)
        network = apply(network, fusible, solve(fusible, sums[fusible.request.name].finish(), Fuse(layers=layers)))
    return network


@pytest.mark.parametrize(("layers", "count"), [(BACKWARDS, 1), (FORWARDS, 2)])
def test_chains_share_a_pass_where_fusing_one_leaves_the_others(layers, count):
    batches = Batches()
    fused, _ = fuse(make(Plain), batches, layers)
    assert batches.passes == count + 1  # once for the shape of the input
    x = batch(Plain)
    torch.testing.assert_close(fused(x), one_after_another(layers)(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("layers", "since"), [(BACKWARDS, [0, 0]), (FORWARDS, [0, 1])])
def test_what_lies_behind_a_chain_waits_for_it(layers, since):
    planned = rehearse(trace(make(Plain)), (2, 8, 8), Fuse(layers=layers))
    assert [one.since for one in planned] == since
    assert len(beside(planned, 0)) == 1 - since[1]
    assert beside(planned, 1) == []


def test_the_plan_counts_the_passes_that_are_made():
    planned = rehearse(trace(make(Plain)), (2, 8, 8), Fuse(layers=BACKWARDS))
    names = [[str(fusible.chain) for fusible in group] for group in passes(planned, 1e9)]
    assert names == [["conv1+conv2", "fc1+fc2"]]  # the largest first
    assert len(passes(planned, max(one.fusible.request.nbytes for one in planned))) == 2


def test_moments_that_hold_are_kept_and_others_taken_again():
    network, batches, kept = trace(make(Plain)), Batches(), KeptMoments()
    asked = []

    def gather(net, requests):
        asked.append([request.name for request in requests])
        return gather_from(batches)(net, requests, None)

    def ask(net, *pairs):
        return kept.get(net, [find(net, pair, (2, 8, 8)).request for pair in pairs], gather)

    before = ask(network, ("conv1", "conv2"), ("conv2", "fc1"))
    last = find(network, ("fc1", "fc2"), (2, 8, 8))
    fused = apply(network, last, None)
    after = ask(fused, ("conv1", "conv2"), ("conv2", "fc2"))
    first, behind = (find(fused, pair, (2, 8, 8)).request.name for pair in (("conv1", "conv2"), ("conv2", "fc2")))
    assert asked[1] == [behind]
    assert after[first] is before[first]
    ask(network, ("fc1", "fc2"))
    ask(apply(network, find(network, ("conv1", "conv2"), (2, 8, 8)), None), ("fc1", "fc2"))
    assert asked[2] == asked[3]  # nodes of the same names, behind the fused layer


def test_a_kernel_of_its_own_has_moments_of_its_own():
    network, kept, asked = trace(make(Plain)), KeptMoments(), []

    def gather(net, requests):
        asked.extend(requests)
        return gather_from(Batches())(net, requests, None)

    for kernel in (None, 4):
        kept.get(network, [find(network, ("conv1", "conv2"), (2, 8, 8), kernel).request], gather)
    assert [request.patches.kernel for request in asked] == [(8, 8), (4, 4)]


def test_groups_are_as_few_as_can_be():
    """Taken in turn they would need four."""
    groups = in_passes([3, 6, 4, 7], lambda size: size, 10)
    assert sorted(map(sorted, groups)) == [[3, 7], [4, 6]]
    assert in_passes([12, 1], lambda size: size, 10) == [[12], [1]]  # whoever takes it refuses the first
    assert in_passes(list[int](), lambda size: size, 10) == []


def test_no_layer_is_fused_twice_by_the_plan():
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(6))).double()
    planned = rehearse(trace(net), (3,), Fuse(layers=(("4", "5"), ("2", "3"), ("0", "1"), ("1", "3"))))
    assert [one.since for one in planned] == [0, 0, 0, 3]
    assert [len(group) for group in passes(planned, 1e9)] == [3, 1]
