"""Strict YAML: trees of plain values, read with what they extend and override, and made into sections.

Plain values are those of YAML 1.2: 1e-3 is a number, only true and false are truth values, and no, 010 or 1:30 are what they
look like. Keys do not repeat, and there are no aliases, which let a small file stand for a huge tree.
"""

import difflib
import re
from pathlib import Path

import yaml

from hssl_hf.errors import UserError, shown
from hssl_hf.fields import make

LONGEST_FILE = 200_000  # characters
FLOAT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
PLAIN = {  # type -> what it looks like, and the characters that it begins with
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (re.compile(r"[-+]?\d+"), list("-+0123456789")),
    "float": (FLOAT, list("-+.0123456789")),
}


class RecipeError(UserError):
    """A recipe that cannot be used; the message holds what was expected, what came and what to do."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, without aliases and repeated keys."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="expected no aliases (*name); write the value again", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.value in keys:
                problem = f"expected every key once, as plain text, got {shown(key.value)}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that means the same to `_Loader` and to YAML 1.1."""

    def ignore_aliases(self, data) -> bool:
        return True


for _name, (_pattern, _first) in PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern.pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{FLOAT.pattern})$"), PLAIN["float"][1])


def parse(text: str, where: str):
    """The plain value of a YAML text.

    Args:
        where: it comes from, for the message.
    Raises:
        RecipeError: if it is no YAML, has aliases or repeated keys, or is too large.
    """
    if len(text) > LONGEST_FILE:
        raise RecipeError(f"{where}: expected at most {LONGEST_FILE} characters, got {len(text)}")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise RecipeError(f"{where}: expected a few levels, got values nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{where}: this is not valid YAML for a recipe: {error}") from error


def dump(tree: dict) -> str:
    """A tree of plain values as YAML that `parse` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: Path):
    """The value of a YAML file, None for an empty one.

    Raises:
        RecipeError: if it cannot be read, and as `parse`.
    """
    try:
        if path.stat().st_size > 4 * LONGEST_FILE:
            raise RecipeError(f"{path}: expected at most {LONGEST_FILE} characters, got {path.stat().st_size} bytes")
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error


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
    tree = read_yaml(path)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: expected sections with keys, got {shown(tree)}")
    for section in tree.values():
        for key in ("path", "classes"):
            value = section.get(key) if isinstance(section, dict) else None
            if isinstance(value, str) and value.startswith("."):
                section[key] = str((path.parent / value).resolve())
    if "extends" not in tree:
        return tree
    extended = tree.pop("extends")
    if not isinstance(extended, str) or not extended.endswith((".yaml", ".yml")):
        raise RecipeError(f"{path}: extends: expected the file of another recipe, such as other.yaml, got {shown(extended)}")
    return _merge(read(path.parent / extended, (*extended_by, path.resolve())), tree)


def _merge(below: dict, above: dict) -> dict:
    """Sections are merged key by key; other values are overridden."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merge(below[key], above[key])
    return merged


def override(tree: dict, text: str) -> None:
    """Set one value of a tree from `a.b=c`, where c is YAML without a comment.

    Raises:
        RecipeError: if the text is not of this form.
    """
    key, _, value = text.partition("=")
    if not key or not value.strip():
        raise RecipeError(f"expected an override of the form a.b=c, got {shown(text)}; for no value write a.b=null")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{shown(key)} cannot be set: {shown(parent)} is a value, not a section")
    tree[last] = parse(value, shown(text))
    if "#" in value and _end_of_last_token(value) < len(value.rstrip()):
        raise RecipeError(
            f"{shown(text)}: expected a value, got a comment: ' #' starts one in YAML; quote the value: {key}='\"...\"'"
        )


def _end_of_last_token(text: str) -> int:
    """Where the YAML of a text ends, before a comment."""
    outside = (yaml.StreamStartToken, yaml.StreamEndToken, yaml.BlockEndToken)
    return max((t.end_mark.index for t in yaml.scan(text, Loader=_Loader) if not isinstance(t, outside)), default=0)


def build(kind, tree, name: str = ""):
    """`make` a section, with the error of a recipe."""
    try:
        return make(kind, tree, name)
    except UserError as error:
        raise RecipeError(str(error)) from error


def flatten(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": c}} -> {"a.b": c}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
