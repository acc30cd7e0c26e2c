"""What a recipe's file and an override may hold."""

import pytest

from hssl_hf.config.recipe import load_recipe
from hssl_hf.config.strict_yaml import LONGEST_FILE, dump, parse
from tests.faults import refused


def test_plain_values_are_what_they_look_like():
    text = "[1e-3, 1E5, 1., .5, -3, +4, 010, 1:30, 1_000, no, yes, on, true, null, ~, 2020-01-01, .inf, <<, =]"
    *values, infinity, merge, equals = parse(text, "here")
    assert values[:7] == [1e-3, 1e5, 1.0, 0.5, -3, 4, 10] and [type(v) for v in values[:7]] == [float] * 4 + [int] * 3
    assert values[7:] == ["1:30", "1_000", "no", "yes", "on", True, None, None, "2020-01-01"]
    assert infinity == float("inf") and (merge, equals) == ("<<", "=")


@pytest.mark.parametrize(
    "value", ["1e-3", "no", "1:30", "010", "null", "2020-01-01", "~", "a: b", "#", "😀", "1_0", 1e-7, 1e22, -0.0]
)
def test_what_is_written_reads_back(value):
    shared = [value]
    tree = {"a": shared, "b": {"c": shared}}
    assert parse(dump(tree), "here") == tree


BOMB = "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
FILES = {
    "aliases": (BOMB, ["no aliases", "line 2"]),
    "an alias of itself": ("optim: &o {epochs: *o}", ["no aliases"]),
    "repeated keys": ("optim: {epochs: 3}\nseed: 1\noptim: {batch_size: 4}", ["every key once", "'optim'", "line 3"]),
    "repeated keys below": ("optim: {epochs: 3, epochs: 4}", ["every key once", "'epochs'"]),
    "merged keys": ("optim: {<<: {epochs: 3}}", ["optim.<<: unknown key"]),
    "keys that are lists": ("? [1, 2]\n: 3", ["every key once, as plain text"]),
    "numbers as keys": ("optim: {1: 2}", ["optim.1: unknown key"]),
    "two documents": ("seed: 1\n---\nseed: 2", ["expected a single document"]),
    "deep lists": ("seed: " + "[" * 50_000, ["nested too deeply"]),
    "deep maps": ("{a: " * 20_000, ["nested too deeply"]),
    "a long text": (f"run: {{output_dir: {'x' * 100_000}}}", ["run.output_dir: expected text"]),
    "a huge file": ("# " + "x" * LONGEST_FILE * 5, [f"at most {LONGEST_FILE} characters"]),
    "a long number": ("seed: " + "9" * 5000, ["digits"]),
    "a long list": (
        f"views: {{global_crop_blur: [{'1, ' * 50_000}1]}}",
        ["views.global_crop_blur: expected a list of 1 to 16"],
    ),
    "objects": ("seed: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
    "control characters": ("seed: '\x07'", ["not valid YAML"]),
    "bytes": ("run: {output_dir: !!binary aGVsbG8=}", ["run.output_dir: expected text"]),
    "dates": ("run: {output_dir: !!timestamp 2020-01-01}", ["run.output_dir: expected text"]),
    "a list": ("- 1", ["expected sections with keys, got [1]"]),
    "a text": ("quickstart", ["expected sections with keys, got 'quickstart'"]),
    "a false value": ("false", ["expected sections with keys, got False"]),
    "extending nothing": ("extends:", ["extends: expected the file of another recipe", "got None"]),
    "extending a list": (
        "extends: [a.yaml, b.yaml]",
        ["extends: expected the file of another recipe", "got ['a.yaml', 'b.yaml']"],
    ),
    "extending a number": ("extends: 3", ["extends: expected the file of another recipe"]),
    "extending no file": ("extends: ''", ["extends: expected the file of another recipe"]),
    "extending what is missing": ("extends: nowhere.yaml", ["there is no recipe"]),
    "extending a folder": ("extends: ../x.yaml", ["there is no recipe"]),
}


@pytest.mark.fault("recipe files")
@pytest.mark.parametrize("name", FILES)
def test_other_files_are_refused(tmp_path, name):
    text, words = FILES[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with refused(*words):
        load_recipe(path)


@pytest.mark.fault("recipe files")
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00" * 100, "seed: \u00e4".encode("latin-1")])
def test_files_that_are_no_text_are_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with refused(str(path)):
        load_recipe(path)


OVERRIDES = [
    ("seed", ["form a.b=c", "'seed'"]),
    ("=1", ["form a.b=c"]),
    ("run.output_dir=", ["form a.b=c", "run.output_dir=", "null"]),
    ("run.output_dir=  ", ["null"]),
    ("optim..epochs=1", ["optim.: unknown key"]),
    ("optim.epochs.x=1", ["optim.epochs: expected a number"]),
    ("optim=3", ["optim: expected a section with keys, got 3"]),
    ("optim.betas=[0.9", ["optim.betas=[0.9", "not valid YAML"]),
    ("seed=*a", ["no aliases"]),
    ("model={a: 1, a: 2}", ["every key once"]),
    ("seed=" + "[" * 5000, ["nested too deeply"]),
    ("data.path=" + "x" * 50_000_000, ["at most", "characters"]),
    ("x" * 5000 + "=1", ["unknown key"]),
    ("data.path=/photos #2", ["data.path=/photos #2", "comment", "quote"]),
    ("optim.betas=[0.9, 0.95] # as in MAE", ["comment", "optim.betas="]),
    ("run.output_dir=#1", ["comment", "quote"]),
    ("extends=other.yaml", ["extends: unknown key"]),
]


@pytest.mark.fault("overrides")
@pytest.mark.parametrize(("override", "words"), OVERRIDES, ids=lambda value: str(value)[:30])
def test_other_overrides_are_refused(override, words):
    with refused(*words):
        load_recipe(None, [override])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.batch_size=1e2", 100),
        ("optim.mixed_precision=no", "no"),
        ("run.output_dir=1:30", "1:30"),
        ("run.output_dir='photos #2'", "photos #2"),
        ("run.output_dir=a#b", "a#b"),
        ("run.output_dir=-x=[1]", "-x=[1]"),
    ],
)
def test_values_of_overrides_are_those_of_files(override, expected):
    section, key = override.partition("=")[0].split(".")
    assert getattr(getattr(load_recipe(None, [override]), section), key) == expected
