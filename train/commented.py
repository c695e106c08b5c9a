"""A configuration as YAML in which every field stands with what it means."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from mer_export import registry
from train.config import TrainConfig
from train.recipe import recipe

WIDTH = 120


def commented(config: TrainConfig) -> str:
    """The whole configuration, which `load_config` reads back; the data section has what was said of the data."""
    system = registry.get(config.system)
    checked = {
        "model": system.parse(config.model),
        "protocol": recipe(config.system).settings.model_validate(config.protocol),
    }
    return "\n".join(_section(config, checked)) + "\n"


def _section(values: BaseModel, checked: Mapping[str, BaseModel] | None = None, indent: str = "") -> Iterator[str]:
    """The lines of a section; `checked` holds the sections that `values` has as plain mappings."""
    meanings = field_meanings(type(values))
    for name in values.model_dump(mode="json"):
        value = (checked or {}).get(name, getattr(values, name))
        yield from _comment(meanings.get(name, ""), indent)
        if isinstance(value, BaseModel) and value.model_dump():
            yield f"{indent}{name}:"
            yield from _section(value, indent=indent + "  ")
        else:
            yield from (indent + line for line in _entry(name, values.model_dump(mode="json")[name]))


def _entry(name: str, value: Any) -> Iterator[str]:
    """A field and its value, long lists with an item a line."""
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        yield f"{name}:"
        yield from (f"  - {_flow(item)}" for item in value)
    else:
        yield f"{name}: {_flow(value)}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text.removesuffix("...\n").strip()


def _comment(meaning: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(meaning, WIDTH - len(indent) - 2):
        yield f"{indent}# {line}"


@cache
def field_meanings(kind: type[BaseModel]) -> dict[str, str]:
    """What the docstring below each field says; the description of the section on its first field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(tree, ast.ClassDef)
            for field, text in zip(tree.body, tree.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(text):
                    found[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value))  # type: ignore[attr-defined]
    return found


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
