"""Every experiment and every named size is one that the code can run."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from configs import models
from deepseek_jax.parallel import MESH_AXES
from deepseek_jax.recipes.blocks import RunSettings, build_model
from deepseek_jax.recipes.grpo_settings import TASKS, GrpoSettings
from deepseek_jax.recipes.settings import build
from deepseek_jax.rewards import Rewards

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"grpo": GrpoSettings}
SHARED = ("__init__", "common", "models")
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in SHARED)
SIZES = sorted(name for name, _ in inspect.getmembers(models, inspect.isfunction) if name[0] != "_")


def load(path, arg=None):
    return importlib.import_module(f"configs.{path.stem}").get_config(arg)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiments_numbers_are_its_recipes_settings(path):
    """Oracle: the recipe's dataclass, which knows every field, its type and what goes together."""
    config = load(path)
    settings = build(SETTINGS[config.recipe], config, "config")
    assert settings.seed == config.seed and set(settings.mesh) <= set(MESH_AXES)
    Rewards(settings.rewards).close()
    assert settings.data.path is not None or settings.data.task in TASKS
    if settings.init_from is None:
        build_model(settings.model)
    else:
        build(RunSettings, settings.model, "config.model")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_says_what_it_is_and_how_to_run_it(path):
    """Oracle: the command with its own path in the docstring, as a reader would paste it."""
    assert (
        f"python launch/train.py --config=configs/{path.name}" in path.read_text().split('"""')[1]
    )


@pytest.mark.parametrize("size", SIZES)
def test_a_named_size_is_a_model(size):
    """Oracle: ModelConfig's own checks, and its numbers read back."""
    block = getattr(models, size)()
    config = build_model(block)
    assert all(
        getattr(config, name) == value for name, value in block.items() if name != "rope_scaling"
    )


def test_the_small_runs_seed_is_its_argument():
    """Oracle: by hand."""
    path = ROOT / "configs" / "grpo_small.py"
    assert load(path).seed == 0 and load(path, "seed=3").seed == 3


def test_gsm8k_asks_for_longer_answers_and_pays_for_true_working():
    """Oracle: by hand."""
    path = ROOT / "configs" / "grpo_smollm2.py"
    plain, gsm8k = load(path), load(path, "gsm8k")
    assert plain.rollout.max_completion_length < gsm8k.rollout.max_completion_length
    assert set(gsm8k.rewards) - set(plain.rewards) == {"true_equations"}


def test_configs_do_without_jax():
    """Oracle: sys.modules of a fresh interpreter that has read every experiment."""
    names = ", ".join(f"configs.{path.stem}" for path in EXPERIMENTS)
    program = f"import sys, {names}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0
