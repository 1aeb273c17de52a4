"""timm's models by name."""

import sys

import pytest

from compresskit.errors import RecipeError, ResourceError
from compresskit.models.timm_zoo import Timm

SHAPE = (3, 64, 64)


def test_classes_channels_and_size_come_from_the_data():
    net = Timm(name="test_vit").build((1, 64, 64), 7)
    assert net.head.out_features == 7
    assert net.patch_embed.proj.in_channels == 1
    assert net.patch_embed.img_size == (64, 64)
    assert Timm(name="test_byobnet", arguments={"drop_rate": 0.3}).build(SHAPE, 7).num_classes == 7


def test_a_tag_of_weights_may_follow():
    assert Timm(name="test_vit.r160_in1k").build(SHAPE, 3).num_classes == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Timm(name="test_vitt"), "timm has no model 'test_vitt'; did you mean 'test_vit"),
        (
            Timm(name="test_vit", arguments={"pretrained": True}),
            "timm would fetch the weights; fetch the file",
        ),
        (Timm(name="test_vit", arguments={"checkpoint_path": "a.pth"}), "name it in model.weights"),
        (Timm(name="test_vit", arguments={"num_classes": 9}), "9 was given, the data need 7; leave it out"),
        (Timm(name="test_vit", arguments={"dept": 9}), "model.arguments: test_vit refuses them: .*dept"),
        (Timm(name="test_vit", arguments={"embed_dim": 65, "num_heads": 4}), "model.arguments: test_vit refuses them"),
    ],
)
def test_mistakes_are_named(model, message):
    with pytest.raises(RecipeError, match=message):
        model.build(SHAPE, 7)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ResourceError, match=r"timm is not installed; pip install 'compresskit\[timm\]'"):
        Timm(name="test_vit").build(SHAPE, 7)
