"""Networks that repairs start from and lead to, and how their weights are compared."""

import copy

import torch

from compresskit.graph.trace import trace

SHAPE = (3, 8, 8)


def teacher_of(net):
    """In float64, its norm with statistics of its own."""
    net = net.double()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return trace(net.eval(), SHAPE)


def perturbed(net, scale=0.2):
    student = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += scale * torch.randn_like(parameter) * parameter.square().mean().sqrt()
    return student


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
