from pathlib import Path

import pytest

from compresskit.commands.fuse.section import FuseAndRetrain
from compresskit.commands.recipe import MomentOptions, Recipe, load_recipe
from compresskit.errors import RecipeError
from compresskit.recipes.yaml_reader import to_yaml

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def recipe_file(tmp_path):
    def recipe_file(text: str) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return path

    return recipe_file


def test_every_shipped_recipe_loads():
    paths = sorted(CONFIGS.rglob("*.yaml"))
    loaded = [load_recipe(path) for path in paths]
    assert [recipe.name for recipe in loaded] == [path.stem for path in paths]
    assert len(loaded) == sum(1 for path in CONFIGS.rglob("*") if path.suffix in (".yaml", ".yml")) > 0


def test_a_recipe_is_named_after_its_file_unless_it_says_so(recipe_file):
    path = recipe_file("seed: 1\n")
    assert load_recipe(path).name == "small"
    assert load_recipe(path, ["name=other"]).name == "other"


def test_the_plain_recipe_loads_as_the_same_recipe(recipe_file, tmp_path):
    recipe = load_recipe(
        recipe_file(
            "data: mnist-mini\nmodel: torchvision:resnet18\ntrain: {optimizer: adam}\nfuse:\nmoments: {memory: 4GB}\n"
        )
    )
    plain = recipe.plain()
    assert plain["model"]["name"] == "resnet18"
    assert plain["train"]["optimizer"]["betas"] == [0.9, 0.999]
    assert "finetune" not in plain
    again = tmp_path / "recipe.yaml"
    again.write_text(to_yaml(plain))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    ("text", "kind", "key", "value"),
    [
        ("model: torchvision:resnet18", "torchvision", "name", "resnet18"),
        ("model: {kind: torchvision:resnet18}", "torchvision", "name", "resnet18"),
        ("model: my.module:factory", "factory", "target", "my.module:factory"),
    ],
)
def test_short_models_are_written_out(recipe_file, text, kind, key, value):
    model = load_recipe(recipe_file(text)).plain()["model"]
    assert (model["kind"], model[key]) == (kind, value)


def test_an_override_reaches_into_a_short_model_and_can_be_one(recipe_file):
    path = recipe_file("model: torchvision:resnet18")
    assert load_recipe(path, ["model.name=resnet50"]).plain()["model"]["name"] == "resnet50"
    assert load_recipe(path, ["model=a.b:c"]).plain()["model"]["target"] == "a.b:c"


@pytest.mark.parametrize(
    "model",
    [
        "lenet-5",
        "torchvision:resnet18",
        "{kind: torchvision, name: resnet18}",
        "old.nets:net",
        "{kind: factory, target: 'old.nets:net'}",
    ],
)
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.kind=my.module:factory", {"kind": "factory", "target": "my.module:factory"}),
        ("model=my.module:factory", {"kind": "factory", "target": "my.module:factory"}),
        ("model.kind=torchvision:resnet34", {"kind": "torchvision", "name": "resnet34"}),
        ("model.kind=timm:resnet34", {"kind": "timm", "name": "resnet34"}),
    ],
)
def test_a_short_kind_of_the_command_line_replaces_what_the_recipe_names(recipe_file, model, override, expected):
    found = load_recipe(recipe_file(f"model: {model}"), [override]).plain()["model"]
    assert {key: found[key] for key in ("kind", "name", "target") if key in found} == expected


@pytest.mark.parametrize("key", ["name=resnet50", "target=a:b"])
def test_a_short_kind_and_what_it_stands_for_are_not_both_given(recipe_file, key):
    with pytest.raises(RecipeError, match=r"command line: model"):
        load_recipe(recipe_file("model: lenet-5"), ["model.kind=torchvision:resnet18", f"model.{key}"])


def test_a_model_named_twice_is_refused(recipe_file):
    with pytest.raises(RecipeError, match=r"yaml:1: model.kind: unknown kind 'torchvision:resnet18'"):
        load_recipe(recipe_file("model: {kind: torchvision:resnet18, name: resnet50}"))


def test_a_section_that_the_verb_needs_must_be_there(recipe_file):
    path = recipe_file("data: mnist-mini\nfuse:\n")
    assert load_recipe(path, verb="fuse", require=["data", "fuse"]).section("fuse") == FuseAndRetrain()
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, verb="train", require=["data", "model", "train"])
    assert refused.value.problems == (
        f"{path}: the recipe has no 'model' section, which 'compresskit train' needs",
        f"{path}: the recipe has no 'train' section, which 'compresskit train' needs",
    )


@pytest.mark.parametrize("name", ["a/b", "''", "..\\b"])
def test_a_name_is_one_part_of_a_path(recipe_file, name):
    with pytest.raises(RecipeError, match="name: must be text without slashes"):
        load_recipe(recipe_file(f"name: {name}\n"))


@pytest.mark.parametrize(
    ("memory", "number"),
    [("4GB", 4e9), ("1.5 GiB", 1.5 * 2**30), ("500kB", 5e5), ("12B", 12), ("1e9", 1e9), ("2048", 2048)],
)
def test_memory_is_read_in_bytes(recipe_file, memory, number):
    assert load_recipe(recipe_file(f"moments: {{memory: {memory}}}")).moments.memory_bytes() == number


def test_memory_without_a_limit_or_with_a_wrong_one(recipe_file):
    assert MomentOptions().memory_bytes() is None
    for wrong in ("4", "1.2.3GB", "GB", "-1GB", "4 gigabytes"):
        with pytest.raises(RecipeError, match=r"yaml:1: moments.memory: must be a number greater than 0"):
            load_recipe(recipe_file(f"moments: {{memory: '{wrong}'}}"))


def test_a_name_of_a_file_that_holds_no_recipe_is_told(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")


def test_a_section_that_is_not_there_is_a_key_error():
    with pytest.raises(KeyError, match="train"):
        Recipe(name="a").section("train")


def test_defaults_need_no_section(recipe_file):
    assert load_recipe(recipe_file("seed: 0\n")) == Recipe(name="small")
