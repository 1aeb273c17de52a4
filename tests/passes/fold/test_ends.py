"""Normalisation and probabilities inside of a network, against those outside."""

import numpy as np
import torch
from torch import nn

from compresskit.data.stored.normalization import Normalization
from compresskit.graph.format.table import to_table
from compresskit.graph.trace import trace
from compresskit.passes.fold.ends import with_normalisation, with_probabilities


def test_bytes_are_normalised_inside_as_batches_are():
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (3, 5, 5)).eval()
    network.register_buffer("pixel_mean", torch.zeros(1))  # a name that is taken
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 1.5)
    made = with_normalisation(network, mean, std, 255.0, 4)
    images = torch.randint(256, (2, 3, 5, 5), dtype=torch.uint8)
    batch = Normalization(mean, std).on(torch.device("cpu"), images)(images)
    assert torch.equal(made(images), network(batch))
    slow = (images.numpy().astype(np.float64) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    torch.testing.assert_close(network(torch.from_numpy(slow).float()), made(images), rtol=1e-4, atol=1e-5)
    assert {"pixel_mean_", "pixel_std"} <= set(made.state_dict())
    to_table(made)


def test_numbers_are_normalised_inside():
    torch.manual_seed(0)
    network = trace(nn.Linear(3, 2), (3,)).eval()
    made = with_normalisation(network, (1.0, 2.0, 3.0), (1.0, 2.0, 4.0), 1.0, 2)
    x = torch.randn(4, 3)
    expected = network((x - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(made(x), expected)


def test_probabilities_are_of_classes():
    torch.manual_seed(0)
    network = trace(nn.Linear(3, 4), (3,)).eval()
    x = torch.randn(5, 3)
    found, scores = with_probabilities(network)(x), network(x).detach().double().numpy()
    powers = np.exp(scores)
    np.testing.assert_allclose(found.detach().numpy(), powers / powers.sum(1, keepdims=True), rtol=1e-5)
    assert torch.equal(network(x).argmax(1), found.argmax(1))
