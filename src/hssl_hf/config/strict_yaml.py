"""Strict YAML: trees of plain values, read with what they extend and override, and built into dataclasses."""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Literal

import yaml

from hssl_hf.errors import UserError


class RecipeError(UserError):
    """A recipe that cannot be used; the message holds what was expected, what came and what to do."""


def read(path: Path, extended_by: tuple[Path, ...] = ()) -> dict:
    """The tree of a recipe, merged with the recipe it extends.

    Raises:
        RecipeError: if there is no such file, it is no YAML, or recipes extend each other in a circle.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")], n=1)
        hint = f" Did you mean {path.parent / near[0]}.yaml?" if near else ""
        raise RecipeError(f"there is no recipe {path}.{hint}")
    if path.resolve() in extended_by:
        raise RecipeError(f"{path} extends itself")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: expected sections with keys, got {tree!r}")
    for section in tree.values():
        for key in ("path", "classes"):
            value = section.get(key) if isinstance(section, dict) else None
            if isinstance(value, str) and value.startswith("."):
                section[key] = str((path.parent / value).resolve())
    if extended := tree.pop("extends", None):
        tree = _merge(read(path.parent / extended, (*extended_by, path.resolve())), tree)
    return tree


def _merge(below: dict, above: dict) -> dict:
    """Sections are merged key by key; other values are overridden."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merge(below[key], above[key])
    return merged


def override(tree: dict, text: str) -> None:
    """Set one value of a tree from `a.b=c`, where c is YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"expected an override of the form a.b=c, got {text!r}")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{key!r} cannot be set: {parent!r} is a value, not a section")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"{text!r}: the value is no YAML: {error}") from error


def unknown(where: str, key: str, known) -> RecipeError:
    """The error for an unknown key, with the most similar known one."""
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Expected one of {sorted(known)}."
    return RecipeError(f"unknown key {where!r} in the recipe. {hint}")


def build(kind, value, where: str):
    """Turn plain YAML into the declared type, strictly."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise RecipeError(f"{where.rstrip('.') or 'the recipe'}: expected a section with keys, got {value!r}")
        declared = typing.get_type_hints(kind)
        for key in value:
            if key not in declared:
                raise unknown(f"{where}{key}", key, declared)
        arguments = {key: build(declared[key], item, f"{where}{key}.") for key, item in value.items()}
        try:
            return kind(**arguments)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{where.rstrip('.') or 'recipe'}: {error}") from error
    return _build_value(kind, value, where.rstrip("."))


def _build_value(kind, value, where: str):
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return build(next(o for o in options if o is not type(None)), value, f"{where}.")
    if origin is Literal:
        if isinstance(value, bool):  # YAML 1.1 reads yes and no as booleans
            value = "yes" if value else "no"
        if value not in options:
            raise RecipeError(f"{where}: expected one of {list(options)}, got {value!r}")
        return value
    if origin is tuple:
        kinds = options[:1] * len(value) if isinstance(value, list) and options[1:] == (Ellipsis,) else options
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise RecipeError(f"{where}: expected a list of {len(kinds)} values, got {value!r}")
        return tuple(_build_value(k, item, where) for k, item in zip(kinds, value, strict=True))
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            raise RecipeError(f"{where}: expected a number, got {value!r}") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecipeError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def flatten(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": c}} -> {"a.b": c}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
