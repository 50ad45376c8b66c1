"""configs/grpo_small.py, shrunk until a test can run it, and one device to run it on."""

import jax

from configs.grpo_small import get_config
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes import driver
from deepseek_jax.rewards import Rule, scoring
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.run import Run
from tests.environments.calls import one_reader

# The ends of the names of metrics that no two runs share
CLOCKS = ("seconds", "minutes", "_time", "per_second", "per_sec_per_gpu", "gib")
# Of a policy that answers otherwise after two steps
LEARNS = dict(optimizer=dict(learning_rate=0.05))
# A layer of experts without the dense one before it: half to compile
ONE_LAYER = dict(num_hidden_layers=1, first_k_dense_replace=0)


def small_config(**fields):
    """The ConfigDict of two steps over two prompts of four; fields: others of GrpoSettings."""
    config = get_config()
    config.model.update(ONE_LAYER)
    config.update(dict(num_steps=2, prompts_per_step=2, group_size=4, save_every=1, eval_every=0))
    config.base.update(dict(num_documents=400, batch_size=8, num_steps=5))
    # Muon's update takes twice as long to compile
    config.base.optimizer.update(dict(kind="adamw", warmup_steps=1))
    config.data.num_held_out = 8
    config.rollout.update(dict(max_completion_length=12, slots=8))
    config.unlock()
    with config.ignore_type():  # pairs in the place of a number
        config.update(fields)
    return config


def by_length(completion, example):
    """A tenth a character: after five steps of pre-training no answer is right, but answers have lengths."""
    return len(completion) / 10


def longer_is_better(patch):
    """Replace a rule by one that a base of few steps can learn."""
    patch.setitem(scoring.RULES, "correct_reasoning", Rule(by_length))


def one_device():
    """A mesh of a single one of conftest's eight devices."""
    return make_mesh(data=1, devices=jax.devices()[:1])


def run_recipe(recipe, config, workdir, should_stop=lambda: False, mesh=None, redo=False):
    """Run a recipe's module as launch does, on one device or on a mesh."""
    mesh = mesh or one_device()
    settings = build(recipe.SETTINGS, config, "config")
    with one_reader(), jax.set_mesh(mesh):
        driver.run(recipe, settings, make_run(workdir, should_stop, mesh), redo=redo)


def make_run(workdir, should_stop=lambda: False, mesh=None, phase=""):
    """A Run in workdir, on one device or on a mesh."""
    return Run(mesh or one_device(), workdir, MetricsWriter(workdir), should_stop, phase)
