import os
from math import isnan
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.recipes.yaml_reader import UnreadableError, read_text, read_yaml, to_yaml


def plain(text):
    root, problems = read_yaml(text)
    assert problems == []
    return root.plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("3", 3),
        ("-0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("010", "010"),
        ("0o10", "0o10"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("'3'", "3"),
        ("'true'", "true"),
        ("!!str 3", "3"),
        ("60%", "60%"),
        ("re:layer.*", "re:layer.*"),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    read = plain(f"a: {text}")["a"]
    assert read == value
    assert type(read) is type(value)


def test_non_finite_numbers_are_read_for_the_schema_to_refuse():
    assert plain("[.inf, -.inf, +.Inf]") == [float("inf"), -float("inf"), float("inf")]
    assert isnan(plain("[.nan]")[0])


def test_keys_are_the_text_that_was_written():
    assert plain("{1: a, no: b, null: c, true: d, 010: e}") == {
        "1": "a",
        "no": "b",
        "null": "c",
        "true": "d",
        "010": "e",
    }


def test_every_value_knows_its_line():
    root, _ = read_yaml("a: 1\n\nb:\n  c:\n    - x\n    - y: 2\n")
    assert (root.value["a"].line, root.value["b"].line, root.value["b"].value["c"].line) == (1, 3, 4)
    first, second = root.value["b"].value["c"].value
    assert (first.line, second.value["y"].line) == (5, 6)


def test_aliases_are_copies_and_merge_keys_give_way_to_own_keys():
    root, problems = read_yaml(
        "base: &b {lr: 1, eps: 2}\nmore: &m {eps: 3, x: 4}\na:\n  lr: 9\n  <<: [*b, *m]\nc: *b\n"
    )
    assert problems == []
    assert root.plain()["a"] == {"lr": 9, "eps": 2, "x": 4}
    assert (root.value["a"].value["lr"].line, root.value["a"].value["x"].line, root.value["c"].line) == (4, 2, 6)
    root.value["c"].value["lr"].value = 5
    assert root.plain()["base"]["lr"] == 1


def test_a_quoted_merge_key_is_an_ordinary_key():
    assert plain("'<<': 1") == {"<<": 1}


def test_repeated_keys_are_all_reported_with_both_lines():
    _, problems = read_yaml("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert [problem.format("r.yaml") for problem in problems] == [
        "r.yaml:4: b.c: given twice, first on line 3",
        "r.yaml:5: a: given twice, first on line 1",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb:\n\tc: 1\n", "r:3: not valid YAML: a tab; indent with spaces"),
        ("a: 1\nb: [1, 2\nc: 3\n", "r:3: not valid YAML: expected ',' or ']', but got ':'"),
        (
            "a: 1\nb: @conv\n",
            "r:2: not valid YAML: found character '@' that cannot start any token; put the text in quotes",
        ),
        ("a: b: c\n", "r:1: not valid YAML: mapping values are not allowed here"),
        ("a: *x\n", "r:1: not valid YAML: found undefined alias 'x'"),
        ("a: 1\n---\nb: 2\n", "r:2: not valid YAML: but found another document"),
        ("a: 1\nb: \x07\n", "r:2: not valid YAML: the character U+0007"),
        ("a:\n  b: &x [*x]\n", "r:2: an alias stands inside what it names"),
        ("? [1, 2]\n: 3\n", "r:1: a key must be text, not a list or a mapping"),
        (
            "a: 1\nb: !!python/name:os.system x\n",
            "r:2: the tag '!!python/name:os.system' is not allowed; recipes are plain data",
        ),
        ("a: !mine {b: 1}\n", "r:1: the tag '!mine' is not allowed; recipes are plain data"),
        ("a: !!int x\n", "r:1: 'x' cannot be read as int"),
        ("a: !!bool yes\n", "r:1: 'yes' cannot be read as bool"),
        ("a:\n  <<: 3\n", "r:2: '<<' takes a mapping or a list of mappings"),
        ("[" * 600 + "]" * 600, "r:1: not valid YAML: nested too deeply"),
        ("a:\n " + "[" * 100 + "]" * 100, "r:2: nested too deeply"),
    ],
)
def test_what_is_no_plain_yaml_gives_one_line(text, line):
    with pytest.raises(UnreadableError) as refused:
        read_yaml(text)
    assert refused.value.problem.format("r") == line


def test_files_that_cannot_be_read(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"a: 1\nb: \xff\n")
    told = {tmp_path / "none.yaml": "no such file", tmp_path: "is a folder; name the recipe file in it"}
    for path, text in told.items():
        with pytest.raises(UnreadableError) as refused:
            read_text(path)
        assert refused.value.problem.format("r") == f"r: {text}"
    with pytest.raises(UnreadableError) as refused:
        read_text(bad)
    assert refused.value.problem.format("r") == "r:2: not UTF-8 text; save the file as UTF-8"


def test_byte_order_mark_and_windows_line_ends_are_no_part_of_the_values(tmp_path: Path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: no\r\n")
    assert plain(read_text(path)) == {"a": 1, "b": "no"}


traps = ["1e-3", "no", "010", "12:30", "2020-01-01", "~", "", "<<", "=", "0x1F", "1_000", "null", ".inf", "- a", "#"]
texts = st.text(max_size=6) | st.sampled_from([*traps, "a\x85b", "\u2028", "a: b"])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
recipes = st.dictionaries(texts, values, max_size=3)
steady = settings(deadline=None, max_examples=100)


@steady
@given(recipes)
def test_what_is_written_is_read_again(data):
    assert repr(plain(to_yaml(data))) == repr(data)  # repr: 1, 1.0 and True are equal, but not the same


@steady
@given(st.lists(texts))
def test_other_readers_see_the_same_texts(data):
    assert yaml.safe_load(to_yaml({"texts": data})) == {"texts": data}


def test_aliases_that_grow_without_end_are_refused_at_once():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    with pytest.raises(UnreadableError, match="more than 20,000 values, counting those of aliases each time"):
        read_yaml("\n".join(lines))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "big.yaml").write_text("a: [1]\n" * 1_500_000)
    with pytest.raises(UnreadableError, match="has 10,500,000 bytes, at most 262,144 are allowed; shorten it"):
        read_text(tmp_path / "big.yaml")


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(UnreadableError, match="is no file but a pipe or a device"):
            read_text(path)
