"""Every recipe at toy size: configs for tests that start whole runs in processes of their own."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from configs import models
from tests.recipes import conversing, small, test_judge
from tests.recipes.distill import test_run as of_distill
from tests.recipes.generate import test_run as of_generate
from tests.recipes.pretrain import test_run as of_pretrain
from tests.recipes.r1 import test_run as of_r1
from tests.recipes.reward_model import test_run as of_reward_model
from tests.recipes.sft import test_run as of_sft
from tests.recipes.small import longer_is_better
from tests.tiny import save_tiny_model

SCORES = ("before/scores.json", "after/scores.json")
OWN_REWARDS = Path(__file__).parents[1] / "rewards/own_rewards.py"


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe at toy size. config(folder) -> its ConfigDict; folder: of what all its runs read.

    stop: of the first turn's calls of should_stop, the one that asks. leaves: the stages whose policies it
    leaves, or what rewards some. says: JSON files and lines, by patterns. replace(patch): replaces rules that
    such a small model never meets.
    """

    recipe: str
    config: Callable
    leaves: tuple[str, ...]
    stop: int = 3
    says: tuple[str, ...] = SCORES
    replace: Callable = lambda patch: None


def pretrain(folder):
    """A dense layer, in one stage without multi-token prediction: little to compile. Asked in the first of
    its three steps, two processes stop in the second.
    """
    rows = dict(batch_size=((0, 8),), micro_batch_size=8, sequence_length=32, num_steps=3)
    more = dict(mtp_weight=((0, 0.0),), bias_update_speed=((0, 0.0),), balance_weight=0.0)
    config = of_pretrain.small_config(**rows, **more)
    del config.stages["stage_2_long"]
    config.stages.stage_1.optimizer.phases = [dict(kind="constant", steps=3, to=1e-3)]
    config.model = models.qwen2_tiny(vocab_size=264) | dict(num_hidden_layers=1)
    config.data.num_held_out, config.data.readers = 60, 2
    return config


def pretrain_in_stages(folder):
    """Experts, multi-token prediction, rows that grow, and a second stage, in which two processes may stop
    some steps after they are asked.
    """
    config = of_pretrain.small_config(batch_size=((0, 8), (2, 16)), micro_batch_size=8)
    config.stages["stage_2_long"].update(dict(batch_size=8, num_steps=6))
    config.data.num_held_out, config.data.readers = 60, 4
    return config


def grpo(folder):
    config = with_one_layer(grpo_of_experts(folder))
    config.num_steps, config.eval_every = 2, 1
    return config


def with_one_layer(config):
    """A config whose base has one dense layer: little to compile."""
    sizes = dict(num_hidden_layers=1)
    config.model = models.qwen2_tiny(vocab_size=config.model.vocab_size) | sizes
    config.base.update(dict(bias_update_speed=0.0, num_steps=2))
    return config


def grpo_of_experts(folder):
    """Four steps, because two processes may stop some steps after they are asked."""
    config = small.small_config(num_steps=4, prompts_per_step=8, group_size=2)
    config.base.num_steps = 2
    return config


def grpo_with_workers(folder):
    """Answers are scored by a user's function too, in processes of its own."""
    config = grpo(folder)
    rewards = {f"{OWN_REWARDS}:brief": 0.5, **config.rewards}
    config.rewards = ConfigDict(rewards, allow_dotted_keys=True)
    return config


def grpo_in_games(folder):
    """Answers are conversations with an environment in processes of its own."""
    return conversing.guess_config(num_steps=4, prompts_per_step=8, group_size=2)


def grpo_with_an_adapter(folder):
    return with_an_adapter(with_one_layer(grpo_of_experts(folder)))


def with_an_adapter(config):
    config.adapter = dict(rank=2, alpha=4.0, targets=["all-linear"])
    return config


def sft(folder):
    config = of_sft.small_config(num_steps=4)
    config.data.readers = 2
    return with_one_layer(config)


def sft_with_an_adapter(folder):
    return with_an_adapter(sft(folder))


def reward_model(folder):
    return with_one_layer(of_reward_model.small_config(num_steps=4))


def judge(folder):
    config = test_judge.small_config(num_steps=4, batch_size=8, save_every=1, log_every=1, slots=8)
    config.data.readers = 2
    return with_one_layer(config)


def evaluate(folder):
    checkpoint = folder / "checkpoint" / "params"
    if not checkpoint.exists():
        save_tiny_model(checkpoint)
    config = dict(recipe="evaluate", checkpoint=str(checkpoint), data=["arithmetic"], samples=3)
    config |= dict(max_completion_length=12, num_problems=6, save_every=2, slots=8)
    return ConfigDict(config)


def generate(folder):
    config = of_generate.small_config(chunk_size=2)
    # Of eight devices too
    config.sampling.slots = 8
    return with_one_layer(config)


def distill(folder):
    """Eight steps, because two processes may stop some steps after they are asked."""
    files = folder / "teacher", str(folder / "texts.jsonl")
    if not files[0].exists():
        of_distill.make_files(folder)
    config = of_distill.small_config((folder, files[1]), readers=2)
    config.students.qwen.num_steps = 8
    return config


def distill_from_a_cache(folder):
    """The teacher's likeliest tokens, which the devices of both processes compute, and one of them writes."""
    config = distill(folder)
    student = config.students.qwen
    student.loss = dict(weights=dict(soft=0.5, hard=0.5), top_k=8, temperature=2.0)
    student.batch_size, student.micro_batches, student.num_steps = 16, 2, 6
    return config


def r1(folder):
    config = of_r1.small_config("last=both")
    config.base.batch_size = 8
    for name in ("zero", "reasoning", "scenarios", *of_r1.SPECIALISTS):
        config[name].prompts_per_step = 8
        config[name].rollout.slots = 8
    config.distilled.prompts_per_step = dict(reasoning=8, general=8)
    config.distilled.rollout.slots = 8
    for name in ("cold_start", "sft", *of_r1.REWARD_MODELS, "judge"):
        config[name].batch_size = 8
    for name in ("traces", "rejection", "judged", "evaluation"):
        config[name].slots = 8
    config.judge.slots = 8
    config.sft.data.readers = 2
    return with_one_layer(config)


TRAINED = ("pretrain", "grpo")
CASES = {
    "pretrain": Case("pretrain", pretrain, ("stage_1",), stop=1, says=("stage_1_*/scores.json",)),
    "pretrain in stages": Case(
        "pretrain",
        pretrain_in_stages,
        ("stage_1", "stage_2_long"),
        says=("stage*/scores.json", "drafts/scores.json"),
    ),
    "grpo": Case(
        "grpo", grpo, TRAINED, says=(*SCORES, "completions.jsonl"), replace=longer_is_better
    ),
    "grpo of experts": Case("grpo", grpo_of_experts, TRAINED, replace=longer_is_better),
    "grpo with workers": Case("grpo", grpo_with_workers, TRAINED, replace=longer_is_better),
    "grpo in games": Case("grpo", grpo_in_games, TRAINED, says=(*SCORES, "completions.jsonl")),
    "grpo with an adapter": Case("grpo", grpo_with_an_adapter, TRAINED, replace=longer_is_better),
    "sft": Case("sft", sft, ("pretrain", "sft")),
    "sft with an adapter": Case("sft", sft_with_an_adapter, ("pretrain", "sft")),
    "reward_model": Case(
        "reward_model",
        reward_model,
        ("pretrain", "reward_model"),
        says=("reward_model/before.json", "reward_model/after.json"),
    ),
    "judge": Case(
        "judge", judge, ("pretrain", "judge"), says=("judge/before.json", "judge/after.json")
    ),
    "evaluate": Case("evaluate", evaluate, (), stop=1, says=("results/scores.json",)),
    "generate": Case(
        "generate",
        generate,
        ("base",),
        stop=5,
        says=("samples/*.jsonl", "report.json", "dataset/fates.json"),
    ),
    "distill": Case("distill", distill, ("students/qwen",), stop=2, says=("*/*/stage.json",)),
    "distill from a cache": Case(
        "distill",
        distill_from_a_cache,
        ("students/qwen",),
        stop=2,
        says=("*/*/stage.json", "students/qwen/targets/*/*/*/features.json"),
    ),
    "r1": Case(
        "r1",
        r1,
        (*of_r1.MEASURED, *of_r1.LATER),
        stop=5,
        says=("measured/*/scores.json", "*/accepted.jsonl", "*/before.json", "*/after.json"),
        replace=of_r1.make_rules_easy,
    ),
}
