"""Every field of a recipe's settings is set by some file of configs/."""

import ast
import dataclasses
import re
import typing

from deepseek_jax.models.config import ModelConfig, RopeScaling, RunSettings
from launch.evaluate import FIELDS
from tests.experiments import CONFIGS, SETTINGS

# A checkpoint's config.json has fields of the first three, and launch/evaluate.py makes its config from flags
EXEMPT = {
    f.name for cls in (ModelConfig, RopeScaling, RunSettings) for f in dataclasses.fields(cls)
}
EXEMPT |= set(FIELDS)
# "loss.clip_eps_high" of a sweep, and "num_steps rollout" where a file copies fields of another one
NAMES = re.compile(r"[\w.]+( [\w.]+)*")


def blocks_in(cls, seen):
    """A settings class, and those of the blocks within it."""
    if cls not in seen:
        seen.add(cls)
        yield cls
        for part in parts_of(*typing.get_type_hints(cls).values()):
            if dataclasses.is_dataclass(part):
                yield from blocks_in(part, seen)


def parts_of(*hints):
    for hint in hints:
        yield hint
        yield from parts_of(*typing.get_args(hint))


def names_in(code):
    """The names of arguments and of attributes in a file's code, and those in strings of names alone."""
    nodes = list(ast.walk(ast.parse(code)))
    prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.keyword):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
        ):
            if NAMES.fullmatch(node.value):
                yield from re.findall(r"\w+", node.value)


def test_every_field_of_every_recipes_settings_is_set_by_a_config():
    """Oracle: the names in the files' code. A field that fails here goes, or gets a config that needs it."""
    named = {name for path in CONFIGS.rglob("*.py") for name in names_in(path.read_text())}
    seen = set()
    unset = [
        f"{block.__name__}.{field.name}"
        for cls in SETTINGS.values()
        for block in blocks_in(cls, seen)
        for field in dataclasses.fields(block)
        if field.name not in named | EXEMPT
    ]
    assert not unset and len(seen) > 40


def test_names_are_those_of_code_and_not_of_prose():
    """Oracle: by hand."""
    code = (
        '"""Loss and rate"""\nc.loss = dict(kl=1, **x)  # rate\nf("/data/d", "a b.c", {"e": 1})\n'
    )
    assert {"loss", "kl", "a", "b", "c", "e"} == set(names_in(code)) - {None}
