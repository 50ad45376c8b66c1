"""Where the config of each recipe has the sizes that a layout sets."""

import dataclasses

import numpy as np
import pytest

from deepseek_jax.costs.layouts import Layout
from deepseek_jax.recipes.planning import layout_fields
from launch.config_file import load_config, split_arguments
from launch.planning.search import flags_of

LAYOUT = Layout(dict(slice=1, fsdp=2, expert=4), micro_batches=3, remat="dots")
FILE = """
from ml_collections import ConfigDict

def get_config():
    blocks = dict(mesh=dict(data=-1), model=dict(remat="full"), stages=dict(a={}))
    return ConfigDict(dict(recipe="pretrain") | blocks)
"""


@dataclasses.dataclass
class Update:
    """What layout_fields reads of a Program: its name, and a batch of 12 rows."""

    name: str
    arguments: tuple = (None, dict(tokens=np.zeros((12, 8)), normalizer=np.zeros(())))


@pytest.mark.parametrize(
    ("recipe", "name", "sizes", "model"),
    [
        ("pretrain", "stage_1", {"stages.stage_1.micro_batch_size": 4}, ""),
        ("grpo", "pretrain", {"base.micro_batch_size": 4}, ""),
        ("grpo", "update", {"micro_batches": 3}, ""),
        ("sft", "update", {"micro_batches": 3}, ""),
        ("r1", "cold_start: update", {"cold_start.micro_batches": 3}, ""),
        ("distill", "small: pretrain", {"starts.small.base.micro_batch_size": 4}, "starts.small."),
        ("distill", "teacher: pretrain", {"teacher.base.micro_batch_size": 4}, "teacher."),
        ("distill", "teacher: update", {"teacher.fine_tune.micro_batches": 3}, "teacher."),
        ("distill", "kl: update", {"students.kl.micro_batches": 3}, "starts.small."),
        ("distill", "rl: update", {"reinforced.rl.micro_batches": 3}, "starts.small."),
    ],
)
def test_a_layout_is_set_where_the_recipe_reads_it(recipe, name, sizes, model):
    """Oracle: the fields of each recipe's settings, by hand; 12 rows in three parts are 4 at once."""
    config = dict(recipe=recipe, students=dict(kl=dict(start="small")))
    config["reinforced"] = dict(rl=dict(start="small"))
    mesh = {"mesh.slices": 1, "mesh.fsdp": 2, "mesh.expert": 4}
    expected = mesh | sizes | {f"{model}model.remat": "dots"}
    assert layout_fields(config, [Update(name)], LAYOUT) == expected


def test_the_printed_flags_set_the_layout(tmp_path):
    """Oracle: the config that the command line makes of them, read by hand."""
    path = tmp_path / "experiment.py"
    path.write_text(FILE)
    fields = layout_fields(load_config(str(path)), [Update("a")], LAYOUT)
    overrides, others = split_arguments(flags_of(fields).split())
    config = load_config(str(path), overrides)
    assert not others and config.model.remat == "dots"
    assert config.mesh.to_dict() == dict(data=-1, slices=1, fsdp=2, expert=4)
    assert config.stages.a.micro_batch_size == 4
