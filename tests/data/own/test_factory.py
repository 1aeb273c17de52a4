"""Data sets that a factory of the user's returns: what is served, in which order, and what is refused."""

import itertools
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, WeightedRandomSampler

from compresskit.data.own import factory
from compresskit.data.own.factory import Factory
from compresskit.data.own.form import numbers
from compresskit.errors import DataError, RecipeError

CPU = torch.device("cpu")
INPUTS = torch.arange(24.0).view(12, 2, 1, 1).expand(12, 2, 3, 3).contiguous()
LABELS = torch.arange(12) % 3


class Pairs(Dataset):
    """Twelve samples, with noise from the generators that a user may draw from."""

    classes = ("cat", "dog", "owl")

    def __init__(self, noise=0.0, count=12):
        self.noise, self.count = noise, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        drawn = torch.rand(()) + random.random() + np.random.rand()
        return INPUTS[index] + self.noise * drawn.float(), int(LABELS[index])


class Named(Pairs):
    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return {"image": inputs.numpy(), "extra": 1, "label": self.classes[label]}


class Stream(IterableDataset):
    def __init__(self, count=12, shuffled=False, told=None):
        self.count, self.shuffled, self.told = count, shuffled, told

    def __len__(self):
        if self.told is None:
            raise TypeError("a stream has no length")
        return self.told

    def __iter__(self):
        order = torch.randperm(self.count) if self.shuffled else torch.arange(self.count)
        yield from ((INPUTS[i], LABELS[i]) for i in order)


class Repeated(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


class Restless(Pairs):
    """Its samples are others each time, whatever the seed is."""

    drawn = random.Random()

    def __getitem__(self, index):
        return INPUTS[index] + self.drawn.random(), int(LABELS[index])


class Broken(Pairs):
    def __getitem__(self, index):
        if index == 8:
            raise KeyError("no picture")
        return super().__getitem__(index)


def pad(samples):
    return torch.stack([x for x, _ in samples]).flatten(2), torch.tensor([y for _, y in samples])


MODULE = sys.modules[__name__]


@pytest.fixture
def load(monkeypatch):
    """The set of a factory that returns what the test gives."""

    def made(returned, seed=0, **options):
        monkeypatch.setitem(sys.modules, "user_data", MODULE)
        monkeypatch.setattr(MODULE, "given", lambda **arguments: returned, raising=False)
        return Factory(target="user_data:given", **options).load(seed)

    return made


def served(split, batch_size=5, **arguments):
    batches = list(split.batches(batch_size, CPU, **arguments))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize(
    ("returned", "options"),
    [
        ((Pairs(), Pairs()), {}),
        ({"train": Pairs(), "test": Pairs()}, {"workers": 2}),
        ({"test": Named(), "train": Named()}, {"inputs": "image", "targets": "label"}),
        ((TensorDataset(INPUTS, LABELS), TensorDataset(INPUTS, LABELS)), {}),
        ((DataLoader(Pairs(), batch_size=3, shuffle=True), DataLoader(Pairs())), {}),
        ((Stream(), Stream(told=12)), {"classes": 3}),
        ((list(zip(INPUTS, LABELS, strict=True)), Pairs()), {"classes": 3}),
        (([(1, x, y) for x, y in zip(INPUTS, LABELS, strict=True)],) * 2, {"inputs": 1, "targets": 2, "classes": 3}),
    ],
)
def test_the_stored_order_serves_what_the_factory_returned(load, returned, options):
    data = load(returned, **options)
    assert (data.task, data.outputs, data.input_shape, data.mean, data.std) == (
        "classification",
        3,
        (2, 3, 3),
        (0.0, 0.0),
        (1.0, 1.0),
    )
    for split in (data.train, data.test):
        inputs, targets = served(split)
        assert torch.equal(inputs, INPUTS)
        assert torch.equal(targets, LABELS)
    assert data.validation is None
    assert data.notes == ()


def test_names_of_classes_are_those_of_the_data_set(load):
    assert load((Pairs(), Pairs())).classes == ("cat", "dog", "owl")
    assert load((Pairs(), Pairs()), classes=3).classes == ()


@pytest.mark.parametrize("part", [Pairs(noise=1), Stream(shuffled=True)], ids=["numbered", "stream"])
def test_an_epoch_is_its_seeds_whatever_the_processes_and_the_state_of_the_generators_are(load, part):
    split = load((part, part), classes=3).train
    torch.manual_seed(5)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    whole = served(split, seed=3)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:]
    torch.manual_seed(6)
    again = served(split, seed=3)
    assert all(map(torch.equal, whole, again))
    assert not torch.equal(whole[0], served(split, seed=4)[0])
    shared = [list(split.batches(5, CPU, seed=3, rank=rank, world=2)) for rank in (0, 1)]
    joined = torch.cat([x for pair in zip(*shared, strict=True) for x, _ in pair])
    assert torch.equal(joined, whole[0])
    behind = list(split.batches(5, CPU, seed=3, start=1))
    assert torch.equal(torch.cat([x for x, _ in behind]), whole[0][5:])
    assert len(served(split, seed=3, drop_last=True)[1]) == 10


def test_worker_processes_draw_as_this_one_does(load):
    here, there = (load((Pairs(noise=1), Pairs()), workers=workers).train for workers in (0, 2))
    assert torch.equal(served(here, seed=1)[0], served(there, seed=1)[0])
    assert here.fingerprint == there.fingerprint


def test_parts_are_held_out_as_the_recipe_says(load):
    data = load(Pairs(), validation=3, test_fraction=0.25, limit=4)
    sizes = [len(split) for split in (data.train, data.validation, data.test)]
    assert sizes == [4, 3, 3]
    found = [{float(x[0, 0, 0]) for x in served(split)[0]} for split in (data.train, data.validation, data.test)]
    assert len(set.union(*found)) == sum(sizes)
    assert load((Stream(), Stream()), limit=4, classes=3).train.sample(3).fingerprint
    stream = load({"train": Stream(), "val": Stream(6), "test": Stream(5)}, limit=4, classes=3)
    assert [len(split) for split in (stream.train, stream.validation, stream.test)] == [4, 6, 5]
    assert torch.equal(served(stream.train)[0], INPUTS[:4])


def test_a_share_of_the_labels_is_replaced_where_asked(load):
    clean, noisy = (load((TensorDataset(INPUTS, LABELS), Pairs()), label_noise=noise) for noise in (0, 0.9))
    assert (served(noisy.train)[1] != LABELS).any()
    assert torch.equal(served(noisy.test)[1], LABELS)
    assert clean.train.fingerprint != noisy.train.fingerprint
    stream = load((Stream(), Stream()), label_noise=0.9, classes=3)
    assert torch.equal(served(stream.train)[1], served(noisy.train)[1])


def test_the_identity_follows_arguments_length_and_samples(load):
    def identity(returned, **options):
        return load((returned, Pairs()), classes=3, **options).train.fingerprint

    one = identity(TensorDataset(INPUTS, LABELS))
    assert one == identity(TensorDataset(INPUTS.clone(), LABELS))
    others = [
        identity(TensorDataset(INPUTS + 1, LABELS)),
        identity(TensorDataset(INPUTS, 2 - LABELS)),
        identity(TensorDataset(INPUTS[:11], LABELS[:11])),
        identity(TensorDataset(INPUTS, LABELS), arguments={"size": 3}),
        identity(TensorDataset(INPUTS, LABELS), limit=11),
    ]
    assert len({one, *others}) == 6


def test_samples_that_are_others_each_time_are_noted_and_have_no_lasting_identity(load):
    first, second = (load((Restless(), Pairs())) for _ in range(2))
    assert "train: its samples differ each time they are read, so no run can be resumed" in first.notes[0]
    assert first.train.fingerprint != second.train.fingerprint
    assert first.test.fingerprint == second.test.fingerprint


def test_a_sampler_of_a_loader_is_noted_and_its_collate_is_taken(load):
    sampler = WeightedRandomSampler(torch.ones(12), 12)
    data = load((DataLoader(Pairs(), sampler=sampler, collate_fn=pad), DataLoader(Pairs(), collate_fn=pad)))
    assert "the order of its WeightedRandomSampler is not kept" in data.notes[0]
    assert data.input_shape == (2, 9)
    assert torch.equal(served(data.train)[0], INPUTS.flatten(2))
    named = load((Pairs(), Pairs()), collate="user_data:pad")
    assert torch.equal(served(named.train)[0], INPUTS.flatten(2))


class Uneven(Sampler):
    def __iter__(self):
        yield from ([0, 1, 2], [3], [4, 5])

    def __len__(self):
        return 3


def test_batches_of_a_loader_that_differ_in_size_are_not_kept_and_that_is_noted(load):
    data = load((DataLoader(Pairs(), batch_sampler=Uneven()), DataLoader(Pairs(), batch_size=5)))
    (note,) = data.notes
    assert "the order of its Uneven is not kept; each epoch takes every sample once, in batches of the recipe's" in note
    assert [len(targets) for _, targets in data.train.batches(5, CPU)] == [5, 5, 2]


class Endless(IterableDataset):
    def __iter__(self):
        for i in itertools.count():
            yield INPUTS[i % 12], LABELS[i % 12]


def test_a_stream_without_an_end_is_read_to_the_limit(load):
    data = load((Endless(), Stream()), classes=3, limit=20)
    assert len(data.train) == 20
    inputs, labels = served(data.train)
    assert torch.equal(labels, torch.cat([LABELS, LABELS[:8]]))
    assert len(load((Stream(), Stream()), classes=3, limit=20).train) == 12


def test_a_stream_that_does_not_end_says_what_to_do_while_it_is_counted(load, monkeypatch, caplog):
    monkeypatch.setattr(factory, "TOLD", 10)
    caplog.set_level("INFO", "compresskit")
    load((Stream(), Stream()), classes=3)
    told = (
        "train: 10 samples and no end; one without an end needs data.limit (of training samples), or itertools.islice"
    )
    assert told in caplog.text


@pytest.mark.parametrize(
    ("target", "task", "outputs", "served_as"),
    [
        (2.5, "regression", 1, torch.tensor([[2.5]])),
        (np.array([1.0, 2.0]), "regression", 2, torch.tensor([[1.0, 2.0]])),
        (np.array([True, False, True]), "regression", 3, torch.tensor([[1.0, 0.0, 1.0]])),
        (True, "classification", 2, torch.tensor([1])),
        (np.zeros((3, 3), np.uint8), "segmentation", 4, torch.zeros(1, 3, 3).long()),
    ],
)
def test_the_task_is_that_of_the_first_target(load, target, task, outputs, served_as):
    part = [(INPUTS[0], target)]
    data = load((part, part), **({"classes": 4} if task == "segmentation" else {}))
    assert (data.task, data.outputs) == (task, outputs)
    _, targets = served(data.test)
    assert targets.dtype == served_as.dtype
    assert torch.equal(targets, served_as)


def test_inputs_become_what_networks_take(load):
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 255
    assert torch.equal(numbers(Image.fromarray(red)), torch.from_numpy(red).permute(2, 0, 1))
    assert numbers(Image.fromarray(red).convert("L")).shape == (1, 2, 3)
    assert numbers(Image.fromarray(red).convert("RGBA")).shape == (3, 2, 3)
    assert numbers(np.zeros(3, np.float16)).dtype == torch.float32
    assert numbers(np.zeros(3, bool)).dtype == torch.float32
    assert numbers(np.zeros(3, np.int16)).dtype == torch.int64
    part = [(Image.fromarray(red), 0), (Image.fromarray(red), 1)]
    inputs, _ = served(load((part, part), classes=2).train)
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("streams", [False, True])
def test_several_inputs_are_a_tuple_and_whole_numbers_stay_so(load, streams):
    samples = [{"image": INPUTS[i], "words": np.arange(4) + i, "label": i % 3} for i in range(12)]
    part = Repeated(samples) if streams else samples
    data = load((part, samples), inputs=("image", "words"), targets="label", classes=3)
    assert (data.input_shape, data.tokens, data.mean, data.std) == (((2, 3, 3), (4,)), (False, True), (), ())
    batches = list(data.train.batches(5, CPU))
    assert [len(targets) for _, targets in batches] == [5, 5, 2]
    (images, words), targets = batches[1]
    assert torch.equal(images, INPUTS[5:10])
    assert torch.equal(words, torch.arange(4) + torch.arange(5, 10)[:, None])
    assert words.dtype == torch.int64
    assert targets.tolist() == [2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("returned", "options", "message"),
    [
        (3, {}, "train: a int; return a torch Dataset, IterableDataset or DataLoader, or a list of samples"),
        (iter([]), {}, "train: a list_iterator, which can be gone through only once; return"),
        ({"training": Pairs(), "rest": Pairs()}, {}, "a mapping of training, rest; give it the keys train, valid"),
        ((Pairs(),), {}, r"a tuple of 1; return \(train, test\) or"),
        ((Pairs(count=0), Pairs()), {}, "train: it holds no samples; return at least one"),
        ((Stream(0), Pairs()), {}, "train: it holds no samples; return at least one"),
        (Named(), {}, "train: a sample is a mapping of image, extra, label; return pairs"),
        (Named(), {"inputs": "pixels", "targets": "label"}, "there is no 'pixels' in it; change data.inputs"),
        (Stream(), {"classes": 3}, "train: an iterable data set cannot be divided; return a test part as well"),
        ((Stream(), Stream()), {"classes": 3, "validation": 2}, "cannot be divided; return a validation part"),
        ((Stream(), Stream()), {}, "it does not tell how many classes there are; give data.classes"),
        ([(INPUTS[0], "cat")], {}, "targets are texts, such as 'cat'; list the names of all classes"),
        ([(INPUTS[0], 1.5)], {"classes": 2}, "a regression has none; leave it out"),
        ({"train": Pairs(), "val": Pairs()}, {"validation": 3}, "returns a validation part; leave one of them out"),
        (DataLoader(Pairs(), batch_size=None), {}, "a DataLoader with batch_size=None; return a data set of single"),
        ([(np.zeros((8, 8, 3), np.uint8), 1)] * 2, {"classes": 2}, r"\(8, 8, 3\), with channels last"),
        ([(Image.new("F", (2, 2)), 1)], {"classes": 2}, "pixels of mode F, of which nobody says what is white"),
        ([(INPUTS[0], 1.5)] * 2, {"label_noise": 0.5}, "needs classes, but the task is regression; leave it out"),
        (([(INPUTS[0], 3)], Pairs()), {"classes": 3}, "whole numbers from 0 to 2, and 3 is none; check data.classes"),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_line(load, returned, options, message):
    with pytest.raises(DataError, match=message) as caught:
        load(returned, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (Broken(), "train, sample 8: it raised KeyError: 'no picture'; mend the data set"),
        (TensorDataset(INPUTS.clone().index_fill_(0, torch.tensor(8), torch.nan), LABELS), "NaN or infinite"),
        (
            [(INPUTS[0] if i != 8 else INPUTS[0, :1], 1) for i in range(12)],
            r"inputs differ, \(1, 3, 3\) \(float32\) and",
        ),
        (Stream(told=13), "it has 13 samples, but ended before; it must give all each time"),
        (Stream(told=11), "it has 11 samples, but went on; its length must be right"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_turns_up_in_an_epoch_is_refused_in_one_line(load, returned, message, workers):
    data = load((returned, Pairs()), classes=3, workers=workers)
    with pytest.raises(DataError, match=message) as caught:
        served(data.train, batch_size=4)
    assert "\n" not in str(caught.value)


def test_a_factory_that_cannot_be_found_or_called_is_refused(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="data.target: there is no module 'no_data'"):
        Factory(target="no_data:make").load(0)
    with pytest.raises(RecipeError, match="torch.utils.data is torch's and makes no data sets; name a module of yours"):
        Factory(target="torch.utils.data:TensorDataset").load(0)
    monkeypatch.setenv("COMPRESSKIT_NO_CODE", "1")
    with pytest.raises(RecipeError, match="data.target: user_data:make would be imported and run, which --no-code"):
        Factory(target="user_data:make").load(0)
