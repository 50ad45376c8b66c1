"""Loads reward models that recipes.reward_model and recipes.judge trained, for config.rewards."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.checkpoint.left import RECORD, left_in_run
from deepseek_jax.checkpoint.reward_params import load_reward_model
from deepseek_jax.data.carried import carried_template
from deepseek_jax.data.chat import render_response
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.errors import Fault, at
from deepseek_jax.files import read_json
from deepseek_jax.models import ModelConfig
from deepseek_jax.parallel.shard import check_splits
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rewards.judge import Judge
from deepseek_jax.rewards.model import RewardModel
from deepseek_jax.rollout import AnswerOptions, Policy

# Beside a judge's parameters and its tokenizer: its completion length
JUDGE = "judge.json"


def load_model_rewards(
    settings: dict[str, ModelRewardSettings], mesh: Mesh, expert_buffer: float | None = None
) -> dict[str, Any]:
    """Load reward models for rewards.Rewards: -> {NAME: rewards.model.RewardModel or rewards.judge.Judge}.

    settings: NAME, which has a weight in Rewards -> its settings. expert_buffer: of the run's ModelConfig,
    whose reward models read as long rows on the same mesh. Raises ValueError, naming the field, for a path
    without a reward model, a batch_size that does not split over the mesh, and a max_completion_length that
    is not the folder's.
    """
    models = {}
    for name, block in settings.items():
        with at(name):
            models[name] = _load_model(block, mesh, expert_buffer)
    return models


def check_split(settings: ModelRewardSettings, mesh: Mesh, judges: bool):
    """Raise ValueError unless the rows of a reward model, or the slots of a judge, split over the mesh."""
    rows, devices = settings.batch_size, mesh.size
    if not judges:
        check_splits(mesh, "batch_size", rows, "batch")
    elif rows % devices:
        raise ValueError(
            f"batch_size={rows} does not split over the mesh's {devices} devices, each of which samples its "
            f"own judgements; set it to a multiple of {devices}"
        )


def judge_length(settings: ModelRewardSettings, about: dict):
    """The longest completion of a judge. about: what its folder says. Raises ValueError where the settings
    differ from it.
    """
    given, own = settings.max_completion_length, about["max_completion_length"]
    if given not in (None, own):
        raise ValueError(
            f"max_completion_length={given}, and the judge in {settings.path} answers in {own} tokens; set "
            f"it to {own}"
        )
    return own


def computed_in(config: ModelConfig, dtype: str, expert_buffer: float | None):
    """The ModelConfig of a reward model with parameters in dtype."""
    return dataclasses.replace(config, dtype=dtype, expert_buffer=expert_buffer)


def _load_model(settings: ModelRewardSettings, mesh: Mesh, expert_buffer: float | None):
    folder = left_in_run(settings.path)
    if (folder / JUDGE).is_file():
        return _load_judge(folder, mesh, settings)
    if settings.max_completion_length is not None:
        raise ValueError(
            f"max_completion_length={settings.max_completion_length} is of a judge, and there is no {JUDGE} "
            f"in {settings.path}; correct path, or leave max_completion_length out"
        )
    check_split(settings, mesh, judges=False)
    try:
        config, params, about = load_reward_model(folder, mesh, settings.dtype)
    # A damaged one keeps its exit status
    except Fault:
        raise
    except ValueError as error:
        raise ValueError(f"path={settings.path!r}: {error}") from error
    config = computed_in(config, settings.dtype, expert_buffer)
    render = functools.partial(_render, *_read(folder))
    kind, rows = about["kind"], settings.batch_size
    return RewardModel(config, params, render, mesh, kind=kind, batch_size=rows)


def _load_judge(folder: Path, mesh: Mesh, settings: ModelRewardSettings):
    """The rewards.judge.Judge from a folder that recipes.judge wrote."""
    about = read_json(folder / JUDGE)
    options = judge_options(judge_length(settings, about), settings.batch_size)
    check_split(settings, mesh, judges=True)
    config, params = load_orbax(folder, dtype=settings.dtype, mesh=mesh)
    return make_judge(Policy(config, params, *_read(folder)), options)


def _read(folder):
    """(tokenizer, template) of a folder."""
    tokenizer, template = load_tokenizer(folder), carried_template(folder)
    if template is None:
        raise ValueError(f"there is no {RECORD} in {folder}, which has the template of its texts")
    return tokenizer, template


def judge_options(max_completion_length: int, slots: int):
    """A judge's AnswerOptions: greedy decoding."""
    return AnswerOptions(max_completion_length=max_completion_length, temperature=0.0, slots=slots)


def make_judge(policy: Policy, options: AnswerOptions):
    """A Judge that samples its judgements from a policy. options: from judge_options."""
    room = policy.config.max_position_embeddings - options.max_completion_length

    def ask(questions):
        # A question without a prompt costs its own verdict alone, not those of the whole batch
        prompts = [_prompt(policy, question, room) for question in questions]
        asked = [prompt for prompt in prompts if not isinstance(prompt, ValueError)]
        if not asked:
            return prompts
        replies = iter(policy.answer(asked, options).texts)
        return [p if isinstance(p, ValueError) else next(replies) for p in prompts]

    return Judge(ask)


def _prompt(policy: Policy, question: str, room: int):
    """The example with its prompt_ids; or a ValueError, not raised, if its text cannot be rendered or has
    more than `room` tokens.
    """
    try:
        (example,) = policy.with_prompts([{"question": question}])
    except ValueError as error:
        return error
    length = len(example["prompt_ids"])
    if length > room:
        return ValueError(
            f"the judge's prompt has {length} tokens, but its context fits only {room}"
        )
    return example


def _render(tokenizer, template, example, text):
    """The ids of a response to an example's messages, without an answer at their end, or to its question."""
    messages = example.get("messages") or [{"role": "user", "content": example["question"]}]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return render_response(tokenizer, messages, text, template=template)
