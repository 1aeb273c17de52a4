"""The network of full size that computes what the cut one does, and what becomes of layers that are written out."""

import pytest
import torch
from torch import Tensor, fx, nn

from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.kept import beside, kept_norms
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.format.table import from_table, to_table
from compresskit.graph.trace import trace
from compresskit.storage.moment_cache import fingerprint
from tests.graph.channels import families
from tests.graph.channels.law import check_law, random_alive, randomised


class Values(fx.Interpreter):
    """Every value of a network, by the name of its node."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node):
        self.found[n.name] = super().run_node(n)
        return self.found[n.name]


def values(network: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    runner = Values(network)
    with torch.no_grad():
        runner.run(x)
    return runner.found


@pytest.mark.parametrize("kind", [families.ViT, families.ConvNeXt, families.Windows])
def test_nodes_keep_names_and_shapes(kind):
    torch.manual_seed(0)
    network, x = trace(randomised(kind())), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    channels = find_channels(network, (3, 8, 8))
    alive = random_alive(channels, 0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    whole, kept = values(network, x), values(kept_norms(network, channels, alive), x)
    tensors = {node.name for node in network.graph.nodes if node.op == "get_attr"}
    for name, value in whole.items():
        if isinstance(value, Tensor) and name not in tensors:
            assert kept[name].shape == value.shape
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_what_stays_of_a_norm_is_what_the_cut_net_has():
    torch.manual_seed(0)
    network, x = trace(randomised(families.ViT())), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    channels = find_channels(network, (3, 8, 8))
    alive = random_alive(channels, 1)
    kept, smaller = values(kept_norms(network, channels, alive), x), values(cut(network, channels, alive), x)
    norms = list(channels.norms)
    assert len(norms) == 3
    for name in norms:
        left = alive[channels.norms[name].atoms]
        torch.testing.assert_close(kept[name][..., left], smaller[name])
        assert not kept[name][..., ~left].any()
        assert not torch.allclose(values(network, x)[name][..., left], smaller[name])


def test_multihead_attention_is_written_out_where_it_is_cut():
    network = trace(randomised(families.Multihead()))
    channels = find_channels(network, (3, 6, 6))
    everything = torch.ones(channels.n_atoms, dtype=torch.bool)
    assert isinstance(cut(network, channels, everything).own, nn.MultiheadAttention)
    alive = everything.clone()
    alive[channels.slots["cross.in_proj_weight", 0][0]] = False
    smaller = cut(network, channels, alive)
    assert isinstance(smaller.own, nn.MultiheadAttention)
    assert smaller.cross.query.weight.shape == (10, 12)
    assert smaller.cross.out_proj.weight.shape == (12, 10)
    assert all("scope" in node.meta for node in smaller.graph.nodes if node.op.startswith("call"))


def test_written_out_attention_drops_as_torch_does():
    network = trace(randomised(families.Multihead(dropout=0.5)))
    channels = find_channels(network, (3, 6, 6))
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[channels.slots["own.in_proj_weight", 0][0]] = False
    smaller, x = cut(network, channels, alive), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert torch.equal(smaller(x), smaller(x))
    assert not torch.equal(smaller.train()(x), smaller(x))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(3, 6), nn.MultiheadAttention(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        x = self.embed(x)
        y, weights = self.attention(x, x, x)
        return self.head(y + weights.sum())


def test_attention_that_is_not_followed_says_so():
    channels = find_channels(trace(Masked()), (4, 3))
    assert set(channels.writes["embed"].tolist()) <= channels.frozen.keys()
    assert "attention: it has masks, returns weights, or is of an odd kind" in channels.frozen.values()


class Tied(nn.Module):
    """Embedding and head share a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(7, 6), nn.LayerNorm(6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.norm(self.embed(x)))


def test_tied_tensors_stay_tied():
    check_law(Tied(), torch.randint(7, (2, 5)))
    network = trace(Tied())
    channels = find_channels(network, (5,))
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[channels.reads["head"][[0, 3]]] = False
    smaller = cut(network, channels, alive)
    assert smaller.head.weight is smaller.embed.weight
    assert smaller.head.weight.shape == (7, 4)
    assert smaller.embed.embedding_dim == smaller.head.in_features == 4


@pytest.mark.parametrize("kind", [families.ViT, families.ConvNeXt, families.Windows, families.Grouped, families.Llama])
def test_it_is_a_network_as_files_and_caches_know_them(kind):
    torch.manual_seed(0)
    shape = (3, 6, 6) if kind is families.Grouped else (3, 8, 8)
    network = trace(randomised(kind()), shape)
    channels = find_channels(network, shape)
    kept = kept_norms(network, channels, random_alive(channels, 0))
    table = to_table(kept)
    again, x = from_table(table), torch.randn(2, *shape, dtype=torch.float64)
    again.load_state_dict(kept.state_dict(), assign=True)
    torch.testing.assert_close(again(x), kept(x))
    assert fingerprint(kept) != fingerprint(kept_norms(network, channels, random_alive(channels, 1)))


class Forced(fx.Interpreter):
    """Gives some layers the outputs that they have elsewhere."""

    def __init__(self, network: fx.GraphModule, outputs: dict[str, Tensor]) -> None:
        super().__init__(network)
        self.outputs, self.found = outputs, {}

    def run_node(self, n: fx.Node):
        self.found[n.name] = self.outputs[n.name] if n.name in self.outputs else super().run_node(n)
        return self.found[n.name]


@pytest.mark.parametrize("kind", [families.ViT, families.ConvNeXt, families.UNet, families.Llama, families.Windows])
@pytest.mark.parametrize("gone", ["nothing", "much"])
def test_the_kept_network_beside_the_whole_one(kind, gone):
    """Where the layers that are solved give what they gave; the others, such as transposed convolutions, do not."""
    torch.manual_seed(0)
    network, x = trace(randomised(kind()), (3, 8, 8)), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    channels = find_channels(network, (3, 8, 8))
    alive = torch.ones(channels.n_atoms, dtype=torch.bool) if gone == "nothing" else random_alive(channels, 0)
    called = {str(n.target): n.name for n in network.graph.nodes if n.op == "call_module"}
    solved = {name for name in channels.reads if isinstance(network.get_submodule(name), nn.Linear | nn.Conv2d)}
    found = beside(network, channels, alive, solved)
    whole, here = values(network, x), values(found.network, x)
    forced = Forced(
        kept_norms(network, channels, alive), {called[name]: whole[called[name]] for name in solved & set(called)}
    )
    with torch.no_grad():
        forced.run(x)
    for node in network.graph.nodes:
        if node.op not in ("output", "get_attr") and isinstance(whole[node.name], Tensor):
            torch.testing.assert_close(here[found.whole[node.name]], whole[node.name])
            torch.testing.assert_close(here[found.kept[node.name]], forced.found[node.name])
    again = {name for name, own in found.kept.items() if own != found.whole.get(name)}
    assert again if gone == "much" else not again
    assert fingerprint(found.network)
