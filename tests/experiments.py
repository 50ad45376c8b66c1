"""The configs of configs/, each with the settings of its recipe: what a test of all of them goes through."""

import importlib
from pathlib import Path

from configs import r1, v3_post_training
from deepseek_jax.named_code import look_beside
from deepseek_jax.recipes.experiment import find_recipe, recipe_modules

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Every recipe: launch/evaluate.py makes the config of one from flags
SETTINGS = {name: find_recipe(name).SETTINGS for name in sorted(recipe_modules())}
SHARED = ("__init__", "adapted_models", "common", "distill_published", "models")
EXPERIMENTS = sorted(path for path in CONFIGS.glob("*.py") if path.stem not in SHARED)
RUNS = [(path, None) for path in EXPERIMENTS] + [
    (CONFIGS / f"{name}.py", f"stage={stage}")
    for name, stages in {"r1": r1.STAGES, "v3_post_training": v3_post_training.STAGES}.items()
    for stage in stages
]
RUNS += [(CONFIGS / "distill_small.py", arg) for arg in ("letters", "plateau")]
RUNS += [(CONFIGS / "tools_small.py", "lying"), (CONFIGS / "generate_small.py", "drafts")]
RUNS += [(CONFIGS / "tools_smollm2.py", "model=r1_distill_qwen_1_5b")]
RUNS += [
    (CONFIGS / "rehearsal.py", f"stage={stage},mesh={mesh},fp8,selection")
    for stage, mesh in {"pretrain": "context", "sft": "tensor", "grpo": "context"}.items()
]
RUNS += [(CONFIGS / "v4_small.py", "model=v3"), (CONFIGS / "v4_flash.py", "recipe=grpo")]
RUNS += [(CONFIGS / "r1_small.py", arg) for arg in ("last=distill", "last=both", "quick")]


def load(path, arg=None):
    """The ConfigDict of a file of configs/, whose code is looked for beside it."""
    look_beside(path)
    return importlib.import_module(f"configs.{path.stem}").get_config(arg)
