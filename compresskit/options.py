"""The one form of extension: a choice that a recipe can name is a small frozen class whose fields are its options."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def option(cls: type[T]) -> type[T]:
    """Frozen keyword-only dataclass. A recipe may give any of its fields, and nothing else."""
    return dataclass(frozen=True, kw_only=True)(cls)


def named(choice: Any) -> str:
    """A choice in a few words: its kind, and those of its options that are not the defaults."""
    own = [(key.name, getattr(choice, key.name), key.default) for key in fields(choice) if key.name != "kind"]
    changed = [f"{name} {value}" for name, value, default in own if value != default]
    return " ".join(filter(None, [getattr(choice, "kind", ""), ", ".join(changed)]))


def changed(other: Any, one: Any, prefix: str = "") -> list[str]:
    """The options of `other` that are not those of `one`, an object of its class: `schedule.milestones [3, 6]`."""
    found = []
    for key in fields(other):
        value, before, name = getattr(other, key.name), getattr(one, key.name), prefix + key.name
        if is_dataclass(value) and type(value) is type(before):
            found += changed(value, before, f"{name}.")
        elif value != before:
            found.append(f"{name} {_shown(value)}")
    return found


def _shown(value: Any) -> str:
    if is_dataclass(value):
        return named(value)
    return str(list(value)) if isinstance(value, tuple) else "none" if value is None else str(value)


def narrowed(cls: type[T], value: Any) -> T:
    """The options of `cls` among those of `value`, an object of a class made from it."""
    return cls(**{key.name: getattr(value, key.name) for key in fields(cls)})  # type: ignore[arg-type]
