"""The configs of configs/, each with the settings of its recipe: what a test of all of them goes through."""

import importlib
from pathlib import Path

from configs import r1, v3_post_training
from deepseek_jax.recipes.distill.settings import DistillSettings
from deepseek_jax.recipes.evaluate.settings import EvaluateSettings
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.recipes.r1.settings import R1Settings
from deepseek_jax.recipes.reward_model.settings import JudgeSettings, RewardModelSettings
from deepseek_jax.recipes.sft.settings import SftSettings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SETTINGS = {
    "distill": DistillSettings,
    "evaluate": EvaluateSettings,  # launch/evaluate.py makes its config from flags
    "generate": GenerateSettings,
    "grpo": GrpoSettings,
    "judge": JudgeSettings,
    "pretrain": PretrainSettings,
    "r1": R1Settings,
    "reward_model": RewardModelSettings,
    "sft": SftSettings,
}
SHARED = ("__init__", "adapted_models", "common", "distill_published", "models")
EXPERIMENTS = sorted(path for path in CONFIGS.glob("*.py") if path.stem not in SHARED)
RUNS = [(path, None) for path in EXPERIMENTS] + [
    (CONFIGS / f"{name}.py", f"stage={stage}")
    for name, stages in {"r1": r1.STAGES, "v3_post_training": v3_post_training.STAGES}.items()
    for stage in stages
]
RUNS += [(CONFIGS / "distill_small.py", arg) for arg in ("letters", "plateau")]
RUNS += [(CONFIGS / "r1_zero.py", "extra_prompts=128")]
RUNS += [(CONFIGS / "r1_small.py", f"last={last}") for last in ("distill", "both")]


def load(path, arg=None):
    """The ConfigDict of a file of configs/."""
    return importlib.import_module(f"configs.{path.stem}").get_config(arg)
