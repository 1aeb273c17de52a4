"""What a section of a recipe can say, read off the option classes: keys, values, defaults, and the comments beside."""

import ast
import inspect
import io
import tokenize
from dataclasses import MISSING, Field, fields, is_dataclass
from textwrap import dedent
from typing import Any, NamedTuple

from compresskit.recipes.hints import keys_of, kinds, list_items, mapping_values, option_class, words
from compresskit.recipes.problems import shown


class Row(NamedTuple):
    """One key: `train.optimizer`, or `train.optimizer[sgd].lr` for a key that only the kind `sgd` has."""

    key: str
    allowed: str
    default: str
    comment: str


def describe(schema: type, section: str) -> list[Row]:
    """The rows of one section of `schema`. A class that has a section of its own is not listed again below another.

    Raises KeyError if there is no such section.
    """
    own = {option_class(hint): name for name, hint in keys_of(schema).items() if name != section and option_class(hint)}
    field = next((field for field in fields(schema) if field.name == section), None)
    if field is None:
        raise KeyError(section)
    return _rows(field, keys_of(schema)[section], section, _comments(schema).get(section, ""), own)


def _rows(field: Field[Any], hint: Any, key: str, comment: str, own: dict[type | None, str]) -> list[Row]:
    cls = option_class(hint)
    if cls in own and cls is not None:
        return [Row(key, f"as the section '{own[cls]}'", _default(field), comment)]
    rows = [Row(key, words(hint), _default(field), comment)]
    by_class: dict[type, list[str]] = {}
    for kind, choice in kinds(hint).items():
        by_class.setdefault(choice, []).append(kind)
    nested = {f"{key}[{'|'.join(names)}]": choice for choice, names in by_class.items()}
    rows_of_kinds = set(nested)
    nested |= {key: cls} if cls else {}
    nested |= {f"{key}.N": item for item in map(option_class, list_items(hint)) if item}
    nested |= {f"{key}.NAME": value for value in map(option_class, mapping_values(hint)) if value}
    for path, option in nested.items():
        if path in rows_of_kinds:
            rows.append(Row(path, "", "", _summary(option)))
        comments = _comments(option)
        for inner in fields(option):
            if inner.name != "kind":
                rows += _rows(
                    inner, keys_of(option)[inner.name], f"{path}.{inner.name}", comments.get(inner.name, ""), own
                )
    return rows


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return shown(field.default_factory())
    if field.default is MISSING:
        return "required"
    if is_dataclass(field.default):
        return str(getattr(field.default, "kind", ""))
    return shown(field.default)


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _comments(cls: type) -> dict[str, str]:
    """The comment of each key: the lines above it that hold nothing else, then the one beside it."""
    found: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        source = dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = _comment_of(node, comments)
    return found


def _comment_of(node: ast.AnnAssign, comments: dict[int, tokenize.TokenInfo]) -> str:
    first = node.lineno
    while first - 1 in comments and not comments[first - 1].line[: comments[first - 1].start[1]].strip():
        first -= 1
    lines = [*range(first, node.lineno), node.end_lineno]
    found = [comments[line].string.removeprefix("#").strip() for line in lines if line in comments]
    return " ".join(text for text in found if text != "fmt: skip")  # which is for a tool
