"""What embeddings look up: tokens as they are stored, of every type and source, or a line that says why not."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from compresskit.data.arrays import Arrays
from compresskit.data.layout import ChannelsLast
from compresskit.data.own.factory import Factory
from compresskit.errors import DataError, RecipeError
from compresskit.graph.trace import trace
from compresskit.training.inputs import LOOKED_AT, check_inputs

STORED = np.random.default_rng(0).integers(0, 9, (60, 5))
SCALED = r"^data: words looks the network's input up as it is stored, and it would be normalised, or divided by 255"


class Words(nn.Module):
    def __init__(self, count=9, read=lambda x: x):
        super().__init__()
        self.read, self.words, self.head = read, nn.Embedding(count, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.words(self.read(x)).mean(1))


class Looked(nn.Module):
    """What comes to the embedding."""

    def forward(self, x):
        return x.long()


@pytest.fixture
def arrays(tmp_path):
    def load(inputs, **options):
        np.savez(tmp_path / "a.npz", inputs=inputs, targets=np.arange(len(inputs)) % 3)
        return Arrays(path=str(tmp_path / "a.npz"), test_fraction=0.25, **options).load(0)

    return load


@pytest.fixture
def factory(monkeypatch):
    def load(inputs, count=None):
        part = TensorDataset(torch.from_numpy(inputs), torch.arange(len(inputs)) % 3)
        monkeypatch.setitem(sys.modules, "user_data", sys.modules[__name__])
        monkeypatch.setattr(sys.modules[__name__], "given", lambda: (part, part), raising=False)
        return Factory(target="user_data:given").load(0)

    return load


def everything(data):
    return torch.cat([inputs for part in (data.train, data.test) for inputs, _ in part.batches(7, torch.device("cpu"))])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint16", "uint64", ">i4", "bool"])
def test_tokens_of_arrays_arrive_as_they_are_stored(arrays, dtype):
    stored = STORED.astype(dtype)
    data = arrays(stored, tokens=True)
    assert (data.tokens, data.scaled, data.mean, data.notes) == ((True,), (False,), (), ())
    served = everything(data)
    assert served.dtype == torch.int64
    assert sorted(served.tolist()) == sorted(stored.astype(int).tolist())
    check_inputs(trace(Words()), data)
    check_inputs(trace(Words(read=Looked())), data)


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "float16"])
def test_without_the_key_whole_numbers_are_read_where_nothing_is_normalised(arrays, dtype):
    stored = STORED.astype(dtype)
    data = arrays(stored, normalize="none")
    check_inputs(trace(Words()), data)
    assert sorted(everything(data).tolist()) == sorted(stored.astype(int).tolist())


@pytest.mark.parametrize(("dtype", "normalize"), [("uint8", "none"), ("uint8", "auto"), ("int64", "auto")])
def test_tokens_are_never_divided(arrays, dtype, normalize):
    data = arrays(STORED.astype(dtype), normalize=normalize)
    for network in (trace(Words()), trace(Words(read=Looked()))):
        with pytest.raises(RecipeError, match=f"{SCALED}.*data.tokens"):
            check_inputs(network, data)


def test_bytes_of_a_factory_are_no_tokens_and_other_whole_numbers_are(factory):
    with pytest.raises(RecipeError, match=f"{SCALED}.*return int64 from data of your own"):
        check_inputs(trace(Words()), factory(STORED.astype("uint8")))
    for dtype in ("int8", "int16", "int32", "int64"):
        data = factory(STORED.astype(dtype))
        check_inputs(trace(Words()), data)
        assert torch.equal(everything(data)[:60], torch.from_numpy(STORED))


@pytest.mark.parametrize("source", ["arrays", "factory"])
@pytest.mark.parametrize(("value", "told"), [(9, "9"), (-1, "-1")])
def test_tokens_that_the_table_lacks_are_named(arrays, factory, source, value, told):
    stored = STORED.copy()
    stored[33, 2] = value
    data = arrays(stored, normalize="none") if source == "arrays" else factory(stored)
    with pytest.raises(DataError, match=f"part: words has entries from 0 to 8, and the data hold {told}; mend"):
        check_inputs(trace(Words()), data)
    clamped = trace(Words(read=lambda x: x.clamp(0, 8)))
    check_inputs(clamped, data)
    check_inputs(trace(Words(read=lambda x: x[:, :2].long())), data)


def test_a_set_in_memory_is_looked_at_as_a_whole(arrays):
    stored = np.tile(STORED, (3 * LOOKED_AT // 60, 1))
    for place in (0, len(stored) - 1):
        stored[place, 0] = 40
        data = arrays(stored, tokens=True)
        for train in (data.train, ChannelsLast(data.train)):  # the layout of images beside them changes nothing
            with pytest.raises(DataError, match="the data hold 40"):
                check_inputs(trace(Words()), replace(data, train=train))
        stored[place, 0] = 0


def test_what_is_no_token_is_refused(arrays):
    with pytest.raises(DataError, match="words looks it up, and it holds 0.5; give whole numbers from 0 to 8"):
        check_inputs(trace(Words()), arrays(np.full((40, 5), 0.5), normalize="none"))
    with pytest.raises(DataError, match=r"inputs: of type float32, and tokens are whole numbers; store array\.astype"):
        arrays(STORED.astype("float32"), tokens=True)
    with pytest.raises(DataError, match=r"inputs: it holds -1, and tokens are numbers from 0"):
        arrays(STORED - 1, tokens=True)
    with pytest.raises(RecipeError, match="of whole numbers, which no embedding of the model looks up"):
        check_inputs(trace(nn.Linear(5, 3)), arrays(STORED, tokens=True))
    with pytest.raises(DataError, match=r"data\.augment: tokens are no images"):
        arrays(STORED, tokens=True, augment={})
    with pytest.raises(ValueError, match="add_channel: tokens have no channels"):
        Arrays(path="a", tokens=True, add_channel=True)
