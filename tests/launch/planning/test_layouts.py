"""Where the config of each recipe has the sizes that a layout sets."""

import numpy as np
import pytest

from configs import distill_small, grpo_small, pretrain_small, r1_small, sft_small
from deepseek_jax.costs.program import Program
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.recipes.pretrain.settings import StageSettings
from deepseek_jax.settings import build
from launch.config_file import load_config, split_arguments
from launch.planning.layouts import Layout, layout_fields
from launch.planning.search import flags_of
from tests.recipes.small import one_device

STAGE = dict(sequence_length=8, batch_size=12, num_steps=1, optimizer=dict(learning_rate=1e-3))
LAYOUT = Layout(dict(slice=1, fsdp=2, expert=4), micro_batches=3, remat="dots")
FILE = """
from ml_collections import ConfigDict

def get_config():
    blocks = dict(mesh=dict(data=-1), model=dict(remat="full"), stages=dict(a={}))
    return ConfigDict(dict(recipe="pretrain") | blocks)
"""


def updates(module, arg=None):
    """{name: Program} of what a config trains, on one device."""
    config = module.get_config(arg)
    recipe = find_recipe(config.recipe)
    planned = driver.plan(recipe, build(recipe.SETTINGS, config, "config"), one_device())
    return {program.name: program for program in planned if program.model is not None}


@pytest.mark.parametrize(
    ("module", "arg", "name", "sizes", "model"),
    [
        (pretrain_small, None, "stage_1", {"stages.stage_1.micro_batch_size": 3}, "model"),
        (grpo_small, None, "pretrain", {"base.micro_batch_size": 3}, "model"),
        (grpo_small, None, "update", {"micro_batches": 3}, "model"),
        (sft_small, None, "update", {"micro_batches": 3}, "model"),
        (r1_small, None, "cold_start: update", {"cold_start.micro_batches": 3}, "model"),
    ],
)
def test_a_layout_is_set_where_the_recipe_reads_it(module, arg, name, sizes, model):
    """Oracle: the fields of each recipe's settings, by hand."""
    update = updates(module, arg)[name]
    fields = layout_fields([update], LAYOUT)
    for field in sizes:
        if field.endswith("micro_batch_size"):
            rows = max(len(leaf) for leaf in update.arguments[1].values() if leaf.shape)
            sizes = {field: rows // 3}
    mesh = {"mesh.slices": 1, "mesh.fsdp": 2, "mesh.expert": 4}
    assert fields == mesh | sizes | {f"{model}.remat": "dots"}


def test_a_layout_of_a_distillation_is_set_in_the_block_of_each_model():
    """Oracle: the fields of the recipe's settings, by hand."""
    found = updates(distill_small, "teacher=made")
    expected = {
        "teacher: pretrain": ("teacher.base.micro_batch_size", "teacher.model"),
        "teacher: update": ("teacher.fine_tune.micro_batches", "teacher.model"),
        "qwen: pretrain": ("starts.qwen.base.micro_batch_size", "starts.qwen.model"),
        "qwen: update": ("students.qwen.micro_batches", "starts.qwen.model"),
    }
    for name, (size, model) in expected.items():
        fields = layout_fields([found[name]], LAYOUT)
        assert size in fields and fields[f"{model}.remat"] == "dots" and len(fields) == 5


def test_the_printed_flags_set_the_layout(tmp_path):
    """Oracle: the config that the command line makes of them, read by hand."""
    path = tmp_path / "experiment.py"
    path.write_text(FILE)
    stage = build(StageSettings, dict(STAGE), "stage")
    batch = dict(tokens=np.zeros((12, 8)), normalizer=np.zeros(()))
    update = Program("a", None, (None, batch), None, 0, 0.0, "", settings=stage, path="stages.a")
    fields = layout_fields([update], LAYOUT)
    overrides, others = split_arguments(flags_of(fields).split())
    config = load_config(str(path), overrides)
    assert not others and config.model.remat == "dots"
    assert config.mesh.to_dict() == dict(data=-1, slices=1, fsdp=2, expert=4)
    assert config.stages.a.micro_batch_size == 4
