"""A wrong field of any config is named by its whole path, and messages name no field that there is not."""

import ast
import dataclasses
import functools
import math
import re
import typing
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import deepseek_jax
import launch
from deepseek_jax.models.config import ModelConfig, RunSettings
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.parallel.mesh import MeshSettings
from deepseek_jax.settings import Between, NamesCode, OnHub, build
from tests.experiments import CONFIGS, RUNS, SETTINGS, load
from tests.quick import others_slow

ROOT = Path(deepseek_jax.__file__).parent
EVALUATE = dict(recipe="evaluate", checkpoint="x", data=["arithmetic"], mesh={})
# Blocks that a config has whole, checked as these
FREE = {"model": (ModelConfig, V4Config, RunSettings), "mesh": (MeshSettings,)}
# One of most recipes: a file takes up to 15 seconds
QUICK = [
    (CONFIGS / f"{name}_small.py", None) for name in ("grpo", "sft", "pretrain", "reward_model")
]


def block_of(path, arg):
    """A config as plain dicts."""
    return load(path, arg).to_dict() if path is not None else EVALUATE


@functools.cache
def hints_of(cls):
    return typing.get_type_hints(cls, include_extras=True)


def options_of(hint):
    """(the hint's alternatives but None, whether None is one of them)."""
    bare = hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint
    args = typing.get_args(bare)
    if typing.get_origin(bare) not in (typing.Union, type(int | str)):
        return [hint], False
    return [arg for arg in args if arg is not type(None)], type(None) in args


def kind_of(hint):
    """(the hint without its range, its origin, its arguments, its ranges). Any text is in the range of a
    mark.
    """
    marks = getattr(hint, "__metadata__", ())
    bare = hint.__origin__ if marks else hint
    ranges = tuple(mark for mark in marks if not isinstance(mark, (OnHub, NamesCode)))
    return bare, typing.get_origin(bare), typing.get_args(bare), ranges


def model_of(cls, block):
    """The dataclass that checks a config's block `model`; None where it depends on a checkpoint."""
    if block.get("init_from") is None and block.get("path") is None:
        of_v4 = block.get("model", {}).get("model_type") == "deepseek_v4"
        return V4Config if of_v4 else ModelConfig
    return None if cls is SETTINGS["pretrain"] else RunSettings


def fields_of(cls, block):
    """(name, hint) of a dataclass, with the dataclass that a plain block is checked as."""
    for name, hint in hints_of(cls).items():
        if typing.get_origin(hint) is not typing.ClassVar:
            yield name, model_of(cls, block) or hint if name == "model" else hint


def samples():
    """A block for each dataclass that some config has one for, by class."""
    found = {}

    def look(hint, value):
        for option in options_of(hint)[0]:
            bare, origin, args, _ = kind_of(option)
            if dataclasses.is_dataclass(bare) and isinstance(value, dict):
                found.setdefault(bare, value)
                for name, field in fields_of(bare, value):
                    look(field, value.get(name))
            elif origin is dict and isinstance(value, dict):
                for each in value.values():
                    look(args[1], each)
            elif origin is tuple and isinstance(value, (list, tuple)):
                for each in value:
                    look(args[0], each)

    for path, arg in RUNS:
        block = block_of(path, arg)
        look(SETTINGS[block["recipe"]], block)
    return found


SAMPLES = samples()


def example_of(hint):
    """A value that the hint allows."""
    bare, origin, args, ranges = kind_of(options_of(hint)[0][0])
    if origin is tuple:
        return [example_of(arg) for arg in args if arg is not ...]
    if origin is typing.Literal:
        return args[0]
    return next((bare(r.low + 1) for r in ranges if isinstance(r, Between)), bare())


def wrong_numbers(bare, ranges):
    """Numbers of a type that are out of its range."""
    for allowed in ranges:
        if allowed.low > -math.inf:
            yield bare(allowed.low if allowed.open_low else allowed.low - 1)
        if allowed.high < math.inf:
            yield bare(allowed.high if allowed.open_high else allowed.high + 1)
    if bare is float:
        yield from (math.nan, math.inf, -math.inf)


def wrong_values(hint, given):
    """(value, path behind the field) for every way in which a field of this type can be wrong.

    given: what the config has there, or None.
    """
    options, may_be_none = options_of(hint)
    if not may_be_none:
        yield None, ""
    kinds = [kind_of(option) for option in options]
    if all(bare is not str for bare, *_ in kinds):
        yield "x", ""  # for a Literal a word that is not allowed, for all others another type
    if all(bare in (str, bool, dict) or dataclasses.is_dataclass(bare) for bare, *_ in kinds):
        yield 3, ""
    for bare, origin, args, ranges in kinds:
        if bare in (int, float):
            yield from ((number, "") for number in wrong_numbers(bare, ranges))
        elif dataclasses.is_dataclass(bare):
            yield from wrong_blocks(bare, given)
        elif origin is tuple:
            if ranges:  # pairs by steps
                yield from (([], ""), ([[1, example_of(args[0])[1]]], ""))
            yield from wrong_entries(args, given)
        elif origin is dict:
            for name, value in (given or {"name": None}).items():
                behind = f".{name}" if name.isidentifier() else f"[{name!r}]"
                for wrong, path in wrong_values(args[1], value):
                    yield (given or {}) | {name: wrong}, f"{behind}{path}"
        elif bare is str and ranges:
            yield "no place", ""


def wrong_entries(args, given):
    if args[-1] is ...:
        first = given[0] if isinstance(given, (list, tuple)) and given else None
        yield from (([wrong], f"[0]{path}") for wrong, path in wrong_values(args[0], first))
        return
    for index, arg in enumerate(args):
        for wrong, path in wrong_values(arg, None):
            entries = [example_of(arg) for arg in args]
            entries[index] = wrong
            yield entries, f"[{index}]{path}"


def smallest(cls):
    """A block with the fields that a dataclass cannot do without."""
    needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory]
    return {name: example_of(hints_of(cls)[name]) for name in needed}


def wrong_blocks(cls, given):
    """A block of cls with one field wrong, or misspelled."""
    block = given if isinstance(given, dict) else SAMPLES.get(cls) or smallest(cls)
    for name, hint in fields_of(cls, block):
        value = block.get(name)
        yield block | {f"{name}x": value}, f".{name}x"
        for wrong, path in wrong_values(hint, value):
            yield block | {name: wrong}, f".{name}{path}"


def is_field(hint, names):
    """Whether a field of this type has such a field below it."""
    if not names:
        return True
    for option in options_of(hint)[0]:
        bare, origin, args, _ = kind_of(option)
        if origin is tuple and is_field(args[0], names):
            return True
        if origin is dict and is_field(args[1], names[1:]):
            return True
        hints = hints_of(bare) if dataclasses.is_dataclass(bare) else {}
        below = FREE.get(names[0], ()) if hints.get(names[0]) is dict else ()
        if names[0] == "NAME" and any(is_field(h, names[1:]) for h in hints.values()):
            return True
        if names[0] in hints and any(is_field(h, names[1:]) for h in (*below, hints[names[0]])):
            return True
    return False


def paths_in(message):
    """The fields that a message names, as lists of names; entries of lists without their numbers."""
    plain = re.sub(r"\[\d+\]", "", message)
    return [path.split(".")[1:] for path in re.findall(r"\bconfig(?:\.\w+)+", plain)]


@pytest.mark.parametrize(
    "path, arg",
    others_slow([*RUNS, (None, None)], *QUICK, (None, None)),
    ids=lambda given: getattr(given, "stem", given),
)
def test_a_wrong_field_is_named_by_its_whole_path(path, arg):
    """Oracle: the path of the field that was made wrong; and the recipe's settings, which have every other
    field that the message names.
    """
    config = block_of(path, arg)
    cls = SETTINGS[config["recipe"]]
    build(cls, ConfigDict(config, allow_dotted_keys=True), "config")
    count = 0
    for wrong, behind in wrong_blocks(cls, config):
        with pytest.raises(ValueError) as error:
            build(cls, wrong, "config")
            pytest.fail(f"config{behind} was let pass")
        count, message = count + 1, str(error.value)
        assert message.startswith(f"config{behind}"), (behind, message)
        for names in paths_in(message.removeprefix(f"config{behind}")):
            assert is_field(cls, names), (names, message)
    assert count > 50


# The first number beyond a bound that a class declares, by hand, in a config that has such a block
BEYOND = {
    "grpo_small": """
        group_size=1 must be at least 2
        num_steps=0 must be at least 1
        epochs=0 must be at least 1
        eval_every=-1 must be at least 0
        kept_groups=-1 must be at least 0
        rollout.slots=0 must be at least 1
        rollout.temperature=0.0 must be within 0.001..100.0
        base.batch_size=0 must be at least 1
        base.sequence_length=1 must be at least 2
        data.num_held_out=1 must be at least 2
        loss.clip_eps=0.0 must be above 0
        loss.clip_eps_high=0.0 must be above 0
        loss.importance_cap=0.0 must be above 0
        loss.off_policy_limit=0.0 must be above 0
        loss.kl_coef=-0.1 must be at least 0
        optimizer.b1=1.0 must be at least 0 and below 1
        optimizer.final_fraction=1.5 must be within 0..1
        optimizer.max_grad_norm=0.0 must be above 0
        checkpoints.keep=0 must be at least 1
        checkpoints.keep_every=0 must be at least 1
        checkpoints.minutes=0.0 must be above 0
        faults.nonfinite=0 must be at least 1
        faults.idle_lines=0 must be at least 1
        model.rope_theta=0.0 must be above 0
        model.initializer_range=-0.1 must be at least 0
        model.head_dim=0 must be at least 1
        model.expert_buffer=0.9 must be at least 1
        conversation.turns=0 must be at least 1
        conversation.workers=0 must be at least 1
        conversation.call_seconds=0.0 must be above 0
        conversation.call_steps=-1 must be at least 0
    """,
    "grpo_lora:model=smollm2": """
        adapter.rank=0 must be at least 1
        adapter.alpha=0.0 must be above 0
    """,
    "effort_small": "effort.tau=0.0 must be above 0",
    "sft_small": """
        sequence_length=1 must be at least 2
        data.num_held_out=1 must be at least 2
        answers.num_prompts=1 must be at least 2
        answers.slots=0 must be at least 1
        answers.temperature=0.0 must be within 0.001..100.0
        answers.top_p=1.5 must be above 0 and at most 1
        answers.top_k=-1 must be at least 0
    """,
    "pretrain_small": """
        stages.stage_1.sequence_length=1 must be at least 2
        stages.stage_1.mtp_weight=-0.1 must be at least 0
        stages.stage_1.balance_weight=-0.1 must be at least 0
        stages.stage_2_long.rope_scaling.factor=0.0 must be above 0
        data.fim_rate=1.5 must be within 0..1
    """,
    "distill_small": "mixing_temperature=0.0 must be within 0.1..100.0",
    "r1_small:last=distill": "distilled.teachers.general.weight=0.0 must be above 0",
    "evaluate": """
        samples=0 must be at least 1
        temperature=-1.0 must be 0 or within 0.001..100.0
        top_p=0.0 must be above 0 and at most 1
    """,
}


def changed(block, names, value):
    """A block with another value at the path of these names."""
    name, *below = names
    return block | {name: changed(block.get(name, {}), below, value) if below else value}


@pytest.mark.parametrize("config", BEYOND)
def test_the_bounds_of_numbers_are_these(config):
    """Oracle: by hand, the message's beginning."""
    name, _, arg = config.partition(":")
    block = block_of(None if name == "evaluate" else CONFIGS / f"{name}.py", arg or None)
    for words in BEYOND[config].strip().split("\n"):
        field, value = re.match(r"\s*([\w.]+)=(\S+) must be", words).groups()
        with pytest.raises(ValueError) as error:
            wrong = changed(block, field.split("."), ast.literal_eval(value))
            build(SETTINGS[block["recipe"]], wrong, "config")
        assert str(error.value).startswith(f"config.{words.strip()}")


def literals(path, docstrings=True):
    """The texts of a file's string literals, with NAME in the place of what an f-string fills in."""
    tree = ast.parse(path.read_text())
    left_out = set()
    for node in ast.walk(tree):  # the outer ones first
        if isinstance(node, ast.Expr) and not docstrings:
            left_out.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            left_out |= set(map(id, node.values))
            yield "".join(
                getattr(part, "value", None) if isinstance(part, ast.Constant) else "NAME"
                for part in node.values
            )
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in left_out:
                yield node.value


def test_rooms_below_the_recipes_name_no_field_of_a_config():
    """Oracle: their string literals, but for docstrings and the file config.json."""
    found = set()
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for text in literals(path, docstrings=False) if not name.startswith("recipes/") else ():
            if re.search(r"\bconfig\.(?!json\b)\w", text):
                found.add(name)
    assert not found


def test_fields_that_recipes_and_programs_name_are_there():
    """Oracle: the settings of all recipes, in which NAME stands for any field or block."""
    wrong = []
    for path in [*ROOT.glob("recipes/**/*.py"), *Path(launch.__file__).parent.glob("*.py")]:
        for names in (names for text in literals(path) for names in paths_in(text)):
            there = any(is_field(cls, names) for cls in SETTINGS.values())
            if names[0] not in ("BLOCK", "FIELD", "json") and not there:
                wrong.append((path.name, names))
    assert not wrong
