from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from compresskit.data.registry import DATASETS

NEEDED = {
    "image-folder": '"root": "r",',
    "voc-detection": '"root": "r",',
    "arrays": '"path": "p",',
    "factory": '"target": "a:b",',
}


def parse(kind: str, options: str) -> Any:
    recipe = f'{{"kind": "{kind}", {NEEDED.get(kind, "")} {options}}}'
    return TypeAdapter(DATASETS[kind]).validate_json(recipe, strict=True)


@pytest.mark.parametrize("kind", DATASETS)
def test_every_set_takes_the_common_options(kind):
    options = parse(kind, '"validation": 5, "split_seed": 1, "label_noise": 0.2, "limit": 10')
    assert options.kind == kind
    assert (options.validation, options.split_seed, options.label_noise, options.limit) == (5, 1, 0.2, 10)


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("wrong", ['"label_noise": 1.0', '"validation": -1', '"limit": 0'])
def test_every_set_refuses_what_is_out_of_range(kind, wrong):
    with pytest.raises(ValidationError):
        parse(kind, wrong)
