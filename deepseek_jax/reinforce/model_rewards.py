"""Loading of reward models and judges, which recipes.reward_model and recipes.judge trained."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from deepseek_jax.checkpoint.left import RECORD, left_in_run
from deepseek_jax.checkpoint.orbax_params import load_orbax
from deepseek_jax.checkpoint.reward_params import load_reward_model
from deepseek_jax.data.carried import carried_template
from deepseek_jax.data.chat import render_response
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.errors import Fault, at
from deepseek_jax.files import read_json
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.parallel.shard import check_splits
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rewards.judge import Judge
from deepseek_jax.rewards.model import RewardModel
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.settings import AnswerOptions

# The file with a judge's completion length, next to its parameters and its tokenizer
JUDGE = "judge.json"


def load_model_rewards(
    settings: dict[str, ModelRewardSettings], mesh: Mesh, expert_buffer: float | None = None
) -> dict[str, Any]:
    """Load the models that rewards.Rewards scores with.

    Args:
        settings: {NAME: the model's settings}; Rewards has a weight for NAME.
        expert_buffer: the field of the run's ModelConfig. Reward models read rows of the same
            length on the same mesh.

    Returns:
        {NAME: rewards.model.RewardModel or rewards.judge.Judge}.

    Raises:
        ValueError: naming the field, for a path without a reward model, for a batch_size that does
            not split over the mesh, and for a max_completion_length that is not the folder's.
    """
    models = {}
    for name, model_settings in settings.items():
        with at(name):
            models[name] = _load_model(model_settings, mesh, expert_buffer)
    return models


def check_split(settings: ModelRewardSettings, mesh: Mesh, judges: bool):
    """Raise ValueError unless a reward model's rows, or a judge's slots, split over the mesh.

    Args:
        judges: whether the model is a judge.
    """
    rows, devices = settings.batch_size, mesh.size
    if not judges:
        check_splits(mesh, "batch_size", rows, "batch")
    elif rows % devices:
        raise ValueError(
            f"batch_size={rows} does not split over the mesh's {devices} devices, each of which samples its "
            f"own judgements; set it to a multiple of {devices}"
        )


def judge_length(settings: ModelRewardSettings, about: Mapping) -> int:
    """Return the longest completion of a judge, in tokens.

    Args:
        about: the content of the judge's JUDGE file.

    Raises:
        ValueError: if the settings have another length.
    """
    settings_length, folder_length = settings.max_completion_length, about["max_completion_length"]
    if settings_length not in (None, folder_length):
        raise ValueError(
            f"max_completion_length={settings_length}, and the judge in {settings.path} answers in "
            f"{folder_length} tokens; set it to {folder_length}"
        )
    return folder_length


def computed_in(
    config: ModelConfig, dtype: Literal["float32", "bfloat16"], expert_buffer: float | None
) -> ModelConfig:
    """Return the config of a reward model with parameters in `dtype`, which it computes in."""
    return dataclasses.replace(config, dtype=dtype, expert_buffer=expert_buffer)


def _load_model(
    settings: ModelRewardSettings, mesh: Mesh, expert_buffer: float | None
) -> RewardModel | Judge:
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
        config, params, record = load_reward_model(folder, mesh, settings.dtype)
    # A Fault, such as a damaged checkpoint, keeps its exit status
    except Fault:
        raise
    except ValueError as error:
        raise ValueError(f"path={settings.path!r}: {error}") from error
    config = computed_in(config, settings.dtype, expert_buffer)
    render = functools.partial(_render, *_read(folder))
    kind, rows = record["kind"], settings.batch_size
    return RewardModel(config, params, render, mesh, kind=kind, batch_size=rows)


def _load_judge(folder: Path, mesh: Mesh, settings: ModelRewardSettings):
    """Load the rewards.judge.Judge from a folder that recipes.judge wrote."""
    record = read_json(folder / JUDGE)
    options = judge_options(judge_length(settings, record), settings.batch_size)
    check_split(settings, mesh, judges=True)
    config, params = load_orbax(folder, dtype=settings.dtype, mesh=mesh)
    return make_judge(Policy(config, params, *_read(folder)), options)


def _read(folder):
    """Read (tokenizer, template) from a folder."""
    tokenizer, template = load_tokenizer(folder), carried_template(folder)
    if template is None:
        raise ValueError(f"there is no {RECORD} in {folder}, which has the template of its texts")
    return tokenizer, template


def judge_options(max_completion_length: int, slots: int) -> AnswerOptions:
    """Return how a judge samples: greedily."""
    return AnswerOptions(max_completion_length=max_completion_length, temperature=0.0, slots=slots)


def make_judge(policy: Policy, options: AnswerOptions) -> Judge:
    """Build a Judge that samples its judgements from a policy.

    Args:
        options: from judge_options.
    """
    room = policy.config.max_position_embeddings - options.max_completion_length

    def ask(questions):
        # A question without a prompt loses only its own verdict, and not the verdicts of the whole
        # batch
        prompts = [_prompt(policy, question, room) for question in questions]
        valid_prompts = [prompt for prompt in prompts if not isinstance(prompt, ValueError)]
        if not valid_prompts:
            return prompts
        replies = iter(policy.answer(valid_prompts, options).texts)
        return [p if isinstance(p, ValueError) else next(replies) for p in prompts]

    return Judge(ask)


def _prompt(policy: Policy, question: str, room: int):
    """Return the example of a question with its prompt_ids.

    If its text cannot be rendered or has more than `room` tokens, return a ValueError, without
    raising it.
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
    """Return the ids of a response to an example's messages, or to its question.

    An answer at the end of the messages is left out.
    """
    messages = example.get("messages") or [{"role": "user", "content": example["question"]}]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return render_response(tokenizer, messages, text, template=template)
