"""A network of full size that computes what a cut one does: it does not see what is dead."""

import copy

import torch
from torch import Tensor, fx

from compresskit.graph.channels.walk import Channels


def kept_norms(network: fx.GraphModule, channels: Channels, alive: Tensor) -> fx.GraphModule:
    """Copy of `network`, same shapes at every node, whose layers read zeros in place of dead atoms and whose norms are
    computed on the channels that stay.

    channels: of this network, or of one with the same nodes. alive: (n_atoms,) bool.
    """
    network = copy.deepcopy(network)
    with torch.no_grad():
        for name, dim in channels.blinding:
            path, _, attribute = name.rpartition(".")
            tensor = getattr(network.get_submodule(path), attribute)
            dead = (~alive[channels.slots[name, dim]]).nonzero(as_tuple=True)[0]
            tensor.index_fill_(dim, dead.to(tensor.device), 0)
    return network
