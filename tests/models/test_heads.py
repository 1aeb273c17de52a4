"""Every classifier of a net is found, those of training alone too, and none keeps its old classes."""

import logging

import pytest
import torch
from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.heads import classifiers, replace_classifiers
from compresskit.models.torchvision_zoo import Torchvision
from compresskit.models.weights.fitting import load_weights

SHAPE = (3, 8, 8)


class Exits(nn.Module):
    """Two classifiers on features of different widths; `way` says what forward makes of them."""

    def __init__(self, way: str = "mean", classes: int = 7) -> None:
        super().__init__()
        self.way = way
        self.stem, self.norm, self.body = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)
        self.first, self.last = nn.Linear(4, classes), nn.Linear(6, classes)
        self.after = nn.Linear(classes, classes)

    def forward(self, x):
        x = self.norm(self.stem(x))
        first = self.first(x.mean((2, 3)))
        last = self.last(self.body(x).relu().mean((2, 3)))
        if self.way == "training":
            return (last, first) if self.training else last
        if self.way == "computed":
            return (last, first) if self.training else (last,)
        if self.way == "dict":
            return {"out": last, "aux": first}
        if self.way == "twice":
            return first + self.after(first)
        if self.way == "beside":
            return last, self.after(last)
        if self.way == "inner":
            return self.after(last)
        return (first + last).softmax(1) if self.way == "softmax" else (first + last) / 2


@pytest.mark.parametrize(
    ("way", "output", "found"),
    [
        ("mean", None, ["first", "last"]),
        ("softmax", None, ["first", "last"]),
        ("training", None, ["first", "last"]),
        ("computed", None, ["first", "last"]),
        ("dict", "out", ["first", "last"]),
        ("dict", "aux", ["first", "last"]),
        ("inner", None, ["after"]),
        ("beside", None, ["last", "after"]),
    ],
)
def test_all_layers_at_the_end_are_classifiers(way, output, found):
    assert classifiers(Exits(way), SHAPE, output) == (found, 7)


def test_a_layer_that_makes_the_outputs_by_itself_and_through_others_is_refused_by_name():
    with pytest.raises(RecipeError, match="first of Exits makes a part of its 7 outputs by itself and a part through"):
        classifiers(Exits("twice"), SHAPE, None)


def test_the_value_that_is_meant_must_come_from_a_classifier():
    class Features(Exits):
        def forward(self, x):
            features = self.norm(self.stem(x)).mean((2, 3))
            return {"features": features.repeat(1, 2)[:, :7], "out": self.first(features)}

    with pytest.raises(RecipeError, match="no linear layer or convolution at the end of Features makes its 7 outputs"):
        classifiers(Features(), SHAPE, "features")


def test_a_net_that_bears_no_nan_is_refused():
    class Checking(Exits):
        def forward(self, x):
            found = super().forward(x)
            if found.isnan().any():
                raise ValueError("NaN!")
            return found

    with pytest.raises(RecipeError, match="Checking does not run where first gives NaN, by which .*: ValueError: NaN!"):
        classifiers(Checking(), SHAPE, None)


def test_the_search_leaves_statistics_and_modes_alone():
    net = Exits("training").train()
    net.body.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    classifiers(net, SHAPE, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
    assert not net.body.training


def test_where_training_mode_does_not_run_layers_that_eval_mode_leaves_out_are_classifiers():
    class Large(Exits):
        def forward(self, x):
            if not self.training:
                return self.last(self.body(x.new_ones(len(x), 4, 3, 3)).mean((2, 3)) + x.mean())
            return self.first(x.view(-1, 999))

    net = Large()
    del net.after
    assert classifiers(net, SHAPE, None) == (["first", "last"], 7)


def test_a_classifier_under_two_names_stays_one_layer():
    net = Exits("mean")
    net.again = net.last
    names, _ = classifiers(net, SHAPE, None)
    assert names == ["first", "last", "again"]
    replace_classifiers(net, names, 5)
    assert net.again is net.last
    assert net(torch.ones(2, *SHAPE)).shape == (2, 5)


@pytest.mark.parametrize(("kind", "options", "shape"), [(nn.Linear, (), (6,)), (nn.Conv1d, (1,), (6, 3))])
def test_a_classifier_with_weight_norm_becomes_a_plain_one(kind, options, shape, tmp_path):
    def net(classes: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.utils.parametrizations.weight_norm(kind(6, classes, *options)))

    torch.save(net(9).state_dict(), tmp_path / "w.pt")
    made = net(5)
    names, _ = classifiers(made, shape, None)
    load_weights(made, tmp_path / "w.pt", fresh=names)
    replace_classifiers(made, names, 4)
    assert type(made[1]) is kind
    assert made(torch.ones(2, *shape)).shape[1] == 4


@pytest.fixture(scope="module")
def googlenet(tmp_path_factory):
    torch.manual_seed(1)
    made = Torchvision(name="googlenet", arguments={"init_weights": False}).build((3, 64, 64), 20)
    path = tmp_path_factory.mktemp("weights") / "googlenet.pth"
    torch.save(made.state_dict(), path)
    return path, made.state_dict()


@pytest.mark.parametrize("classes", [10, 20])
def test_heads_of_training_alone_are_fresh_too(classes, googlenet, caplog):
    path, trained = googlenet
    model = Torchvision(name="googlenet", arguments={"init_weights": False}, weights=str(path), head="fresh")
    with caplog.at_level(logging.WARNING, logger="compresskit"):
        state = model.build((3, 64, 64), classes).state_dict()
    heads = ("fc", "aux1.fc2", "aux2.fc2")
    assert [state[f"{head}.weight"].shape[0] for head in heads] == [classes] * 3
    changed = {name.rpartition(".")[0] for name, tensor in state.items() if not torch.equal(tensor, trained[name])}
    assert changed == set(heads)
    assert (
        f"classifiers aux1.fc2, aux2.fc2 and fc there are fresh ones with {classes} outputs each" in caplog.messages[-1]
    )


def test_of_several_values_the_one_that_is_meant_has_a_classifier():
    from torchvision.models.segmentation import fcn_resnet50

    net = fcn_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    assert classifiers(net, (3, 32, 32), "out") == (["classifier.4", "aux_classifier.4"], 21)
