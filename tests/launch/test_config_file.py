"""Fields of a config that the command line sets."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from deepseek_jax.recipes.experiment_file import set_field
from launch.config_file import load_config, split_arguments
from tests.launch.test_train import launched

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config():
    config = ConfigDict(dict(recipe="fields", size=8, rate=0.1, name="a", flag=False, betas=(0.9, 0.95)))
    config.files = ["one.jsonl"]
    config.path = config_dict.placeholder(str)
    config.loss = dict(clip=0.2, kl=0.0)
    config.mesh = dict(data=2, expert=2)
    config.double = config.get_ref("size") * 2
    return config
"""
RECIPE = """
import dataclasses

from deepseek_jax.recipes.page import run_page

@dataclasses.dataclass(frozen=True)
class Loss:
    clip: float
    kl: float = 0.0
    high: float | None = None

@dataclasses.dataclass(frozen=True)
class Fields:
    recipe: str
    size: int
    rate: float | tuple[tuple[int, float], ...]
    name: str
    flag: bool
    betas: tuple[float, float]
    files: tuple[str, ...]
    loss: Loss
    mesh: dict
    double: int
    path: str | None = None
    steps: int = 3
    sources: tuple[str, ...] = ()
    warm: Loss | None = None

SETTINGS = Fields

def stages(s):
    return []

def page(results):
    return run_page(results, "Fields")

def report(results):
    pass
"""
AS_IT_STANDS = dict(
    recipe="fields",
    size=8,
    rate=0.1,
    name="a",
    flag=False,
    betas=[0.9, 0.95],
    files=["one.jsonl"],
    path=None,
    loss=dict(clip=0.2, kl=0.0),
    mesh=dict(data=2, expert=2),
    double=16,
)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "fields.py").write_text(CONFIG)
    return tmp_path / "fields.py"


def overridden(file, *arguments):
    """The config with these arguments, by its JSON."""
    overrides, others = split_arguments([f"--config.{argument}" for argument in arguments])
    assert not others
    return json.loads(load_config(str(file), overrides).to_json())


def test_any_field_is_set_as_a_user_sets_it(file):
    """Oracle: config.json of the run, against the file's fields and the values by hand."""
    (file.parent / "plugins").mkdir()
    (file.parent / "plugins" / "fields.py").write_text(RECIPE)
    arguments = {
        "size": "9",  # a number, and by reference double
        "rate": "[[0, 1.0], [10, 0.7]]",  # pairs in place of a number
        "name": "3",  # a text, whatever it looks like
        "flag": "true",
        "betas": "(0.8, 0.9)",
        "files": "['a.jsonl', 'b.jsonl']",
        "path": "my data.jsonl",  # a placeholder
        "loss": "{'clip': 0.3, 'high': 0.4}",  # a block as a whole
        "mesh.expert": "4",
        "steps": "5",  # what the file leaves out
        "sources": "['c.jsonl']",
        "warm.clip": "1",  # in a block that it leaves out
    }
    given = [f"--config.{field}={text}" for field, text in arguments.items()]
    end = launched(file.parent, "--config=fields.py", "--workdir=out", *given)
    assert end.status == 0, end.err
    assert json.loads((file.parent / "out" / "config.json").read_text()) == AS_IT_STANDS | dict(
        size=9,
        double=18,
        rate=[[0, 1.0], [10, 0.7]],
        name="3",
        flag=True,
        betas=[0.8, 0.9],
        files=["a.jsonl", "b.jsonl"],
        path="my data.jsonl",
        loss=dict(clip=0.3, high=0.4),
        mesh=dict(data=2, expert=4),
        steps=5,
        sources=["c.jsonl"],
        warm=dict(clip=1),
    )


@pytest.mark.parametrize(
    "argument, field, value",
    [
        ("rate=1", "rate", 1.0),
        ("rate=1e-4", "rate", 1e-4),
        ("flag=False", "flag", False),
        ("name=None", "name", None),
        ("name=[1, 2]", "name", "[1, 2]"),
        ("path=7", "path", "7"),
        ("files=[]", "files", []),
        ("mesh={}", "mesh", {}),
        ("loss=None", "loss", None),
        ("new=words of a text", "new", "words of a text"),
        ("new=-1", "new", -1),
        ("new=false", "new", False),
        ("new=a=b", "new", "a=b"),
    ],
)
def test_a_value_is_read_as_python_writes_it_and_a_text_as_it_stands(file, argument, field, value):
    """Oracle: by hand; a number of the file that is given as an int stays a float."""
    found = overridden(file, argument)
    assert found == AS_IT_STANDS | {field: value} and type(found[field]) is type(value)


def test_of_two_values_the_later_one_holds_within_a_block_too(file):
    """Oracle: by hand."""
    assert overridden(file, "size=1", "size=2")["size"] == 2
    assert overridden(file, "mesh={'data': 1}", "mesh.fsdp=4")["mesh"] == dict(data=1, fsdp=4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["size=abc"], "--config.size=abc cannot be read as a value of type int"),
        (["files=['a.jsonl'"], "--config.files=\\['a.jsonl' cannot be read"),
        (["files=a.jsonl"], "--config.files=a.jsonl cannot be read.*\\['a', 'b'\\]"),
        (["loss={clip: 1}"], "--config.loss={clip: 1} cannot be read.*a value of type block"),
        (["loss={[1]: 2}"], "--config.loss"),
        (["size.x=1"], "--config.size.x: config.size=8 is not a block"),
        (["mesh.data=1", "mesh={}"], "--config.mesh would replace --config.mesh.data; give it"),
        (["size"], "--config.size has no value; write --config.size=VALUE"),
        (["=3"], "--config.=3 has no value; write --config.FIELD=VALUE"),
    ],
)
def test_a_value_that_cannot_be_set_is_refused_by_its_field(file, arguments, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match=words):
        overridden(file, *arguments)


@pytest.mark.parametrize(
    "text, name, words",
    [
        ("", "fields.py", "has no function get_config"),
        ("def get_config(): return {}", "fields.py", "returned {}; it must return a ConfigDict"),
        ("def get_config(): return {}", "fields.py:x", "get_config does not fit: too many"),
        ("", "nowhere.py", "nowhere.py: there is no such file"),
        ("", "fields.txt", "fields.txt is not a Python file"),
    ],
)
def test_a_file_that_gives_no_config_is_refused(tmp_path, text, name, words):
    """Oracle: the words a reader needs."""
    for file in ("fields.py", "fields.txt"):
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=words):
        load_config(str(tmp_path / name))


def test_a_locked_config_takes_new_fields_and_stays_locked():
    """Oracle: by hand."""
    config = ConfigDict(dict(seed=0)).lock()
    set_field(config, "loss.clip", 0.1)
    assert config.loss.clip == 0.1 and config.is_locked


def test_arguments_of_other_flags_stay_in_order():
    """Oracle: by hand; one dash serves too."""
    argv = ["train.py", "--config=a.py:x", "-config.seed=1", "--workdir=w", "--config.a.b= c\nd"]
    assert split_arguments(argv) == (
        [("seed", "1"), ("a.b", " c\nd")],
        ["train.py", "--config=a.py:x", "--workdir=w"],
    )


@pytest.mark.parametrize("folder_of_start", [None, "runs/v3/params"])
def test_v3s_long_context_takes_its_start_from_the_command_line(folder_of_start):
    """Oracle: the flag, read back from the config; without the flag there is no start."""
    name = f"{ROOT / 'configs' / 'pretrain_v3.py'}:context=32k"
    given = [("init_from", folder_of_start)] if folder_of_start else []
    assert load_config(name, given).init_from == folder_of_start
