"""Reconstruction of every family of nets: the cut net is the masked one, with its norms and its attention."""

import pytest
import torch

from compresskit.errors import RecipeError
from compresskit.graph.capture import capture
from compresskit.graph.counting import count
from compresskit.passes.moments import gather_from
from compresskit.passes.reconstruct.network import Reconstruction, reconstruct, reconstruct_model
from compresskit.passes.reconstruct.options import Reconstruct, Target
from compresskit.passes.reconstruct.readers import plan, summed
from tests.graph.channels.families import Multihead
from tests.graph.channels.test_families import IMAGES
from tests.passes.prune.test_families import batches, network_of

CASES = {
    "parallel": Reconstruct(keep="60%"),
    "top-down": Reconstruct(keep="60%", chaining="top-down"),
    "bottom-up": Reconstruct(keep="60%", chaining="bottom-up"),
    "dynamic": Reconstruct(keep="60%", sampler="dynamic"),
    "static": Reconstruct(keep="60%", sampler="static"),
    "static, top-down": Reconstruct(keep="60%", sampler="static", chaining="top-down"),
    "target": Reconstruct(target=Target(macs="75%")),
}


def run(name: str, options: Reconstruct):
    network, shape = network_of(name)
    data = [(x.double(), y) for x, y in batches(name)]
    network = network.double()
    return network, shape, reconstruct(network, gather_from(data), options, shape), torch.cat([x for x, _ in data])


def error(found: Reconstruction, network, x) -> float:
    with torch.no_grad():
        return float((found.network(x) - network(x)).norm() / network(x).norm())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", IMAGES)
def test_the_cut_net_is_the_masked_one(name, case):
    if name == "shared" and ("static" in case or case == "target"):
        with pytest.raises(RecipeError, match="it is called 2 times|91.5% remain"):
            run(name, CASES[case])
        return
    network, shape, found, x = run(name, CASES[case])
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), found.masked(x), rtol=1e-9, atol=1e-11)
    before, after = count(network, shape), count(found.network, shape)
    assert after.macs < before.macs
    if case == "target":
        assert after.macs <= 0.75 * before.macs
    assert any(row.kept < row.inputs for row in found.rows)


@pytest.mark.parametrize("name", ["vit", "multihead", "convnext", "llama"])
def test_top_down_is_nearer(name):
    parallel, chained = (run(name, CASES[case]) for case in ("parallel", "top-down"))
    assert error(chained[2], chained[0], chained[3]) < error(parallel[2], parallel[0], parallel[3])


def test_layers_of_a_transformer_are_sites():
    network, shape = network_of("vit")
    made = plan(network, shape, Reconstruct(keep="60%"))
    samplers = {site.name: "dynamic" if site.dynamic else "static" for site in made.sites}
    assert samplers == {"mlp.fc2": "static"} | dict.fromkeys(
        ["attention.qkv", "attention.proj", "mlp.fc1", "head"], "dynamic"
    )
    assert [site.n_groups for site in made.sites] == [12, 12, 12, 20, 12]
    skipped = plan(network, shape, Reconstruct(keep="60%", sampler="static")).skipped
    assert "chaining: top-down allows it" in skipped["attention.proj"]
    assert skipped.keys() == {"embed", "attention.qkv", "attention.proj", "mlp.fc1", "head"}


def test_what_norms_sum_over_is_fitted_as_it_is_behind_the_cut():
    """The weights are least squares on what the layer reads of a norm over the channels that stay."""
    network, _, found, x = run("convnext", CASES["static, top-down"])
    (node,) = (n for n in network.graph.nodes if n.target == "mlp.fc1")
    layer = found.masked.get_submodule("mlp.fc1")
    with torch.no_grad():
        (target,) = capture(network, [node.name])(x)
        (inputs,) = capture(found.masked, [node.all_input_nodes[0].name])(x)
    kept = layer.weight.abs().sum(0) > 0
    assert 0 < kept.sum() < len(kept)
    design = torch.cat([inputs.flatten(0, -2)[:, kept], torch.ones(target[..., 0].numel(), 1).double()], 1)
    solution = torch.linalg.lstsq(design, target.flatten(0, -2), driver="gelsd").solution  # a norm's outputs sum to 0
    torch.testing.assert_close(layer(inputs).flatten(0, -2), design @ solution, rtol=1e-6, atol=1e-8)


def test_attention_as_one_module_is_written_out():
    torch.manual_seed(0)
    _, rows = reconstruct_model(Multihead().eval(), batches("multihead"), keep="60%")
    assert {"own.in_proj", "own.out_proj", "cross.query", "cross.key", "cross.value"} <= {row.name for row in rows}


def test_other_layers_are_named():
    network, shape = network_of("unet")
    skipped = plan(network, shape, Reconstruct(keep="60%")).skipped
    assert skipped["up1"] == "moments of ConvTranspose2d are not there yet"
    network, shape = network_of("swin")
    assert "argument of a call" in plan(network, shape, Reconstruct(keep="60%")).skipped["features.1.0.attn.qkv"]


def test_norms_and_attention_sum_over_width_and_heads():
    network, shape = network_of("vit")
    channels = plan(network, shape, Reconstruct(keep="60%")).channels
    kinds = [channels.kinds[atom] for atom in summed(channels).nonzero().flatten().tolist()]
    assert sorted(kinds) == ["head-dim"] * 6 + ["width"] * 12
