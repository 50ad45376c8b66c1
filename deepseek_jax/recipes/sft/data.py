"""The conversations of a fine-tuning, and held-out prompts to answer."""

import functools
from pathlib import Path

from deepseek_jax.data.chat import last_prompt
from deepseek_jax.data.conversations import render_numbered
from deepseek_jax.data.messages import (
    read_conversations,
    what_it_answers,
    worked_conversations,
)
from deepseek_jax.data.sources import hold_out
from deepseek_jax.data.stored import RandomAccess
from deepseek_jax.errors import at
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.rollout.policy import Policy, check_room
from deepseek_jax.worlds.registry import find_questions

# Columns that replace the last two messages: a reward needs the answer without its working
OWN = ("question", "answer")


def load_conversations(settings: SftSettings, folder: Path) -> tuple[RandomAccess, RandomAccess]:
    """Open the conversations of a config: the training set and the held-out set.

    Args:
        settings: The settings of the whole config.
        folder: The folder for the dataset that is built from a path's conversations.

    Returns:
        (training set, held-out set).
    """
    data = settings.data
    with at("data"):
        if data.path is not None:
            source = read_conversations(data.path, folder, data.split, data.columns)
            return hold_out(source, data.num_held_out, what_it_answers)
        _, questions = find_questions(data.task)
        task = questions.task(settings.seed, data.num_held_out)
    train, held_out = (
        worked_conversations(e, questions.worked) for e in (task.train, task.held_out)
    )
    return train, held_out


def held_out_prompts(settings: SftSettings, policy: Policy, source: RandomAccess) -> list[dict]:
    """Return examples to answer and to score, from the first held-out conversations that fit a row.

    Args:
        settings: The settings of the whole config.
        policy: The policy with the tokenizer and the template.
        source: The held-out conversations.

    Returns:
        Dicts with all columns of the conversation and these. prompt_ids: the conversation
        up to the last assistant's text. messages: the same part as messages. question and answer:
        the conversation's own fields, or else its last two messages. The list is empty if the data
        are texts, which ask nothing.

    Raises:
        ValueError: A prompt and its answer exceed the model's positions, or fewer than
            answers.num_prompts conversations fit.
    """
    examples: list[dict] = []
    num_prompts = settings.answers.num_prompts
    render = functools.partial(render_numbered, policy.tokenizer, template=policy.template)
    are_texts = True
    for index in range(len(source)):
        record = source[index]
        if len(record["messages"]) == 1:
            continue
        are_texts = False
        ids, is_target = render(record, index)
        if len(ids) <= settings.sequence_length and len(examples) < num_prompts:
            own_columns = {name: record[name] for name in OWN if record.get(name) not in (None, "")}
            question_message, answer_message = record["messages"][-2:]
            example = (
                record
                | {"question": question_message["content"], "answer": answer_message["content"]}
                | own_columns
            )
            example["answer"] = str(example["answer"])
            prompt_fields = {
                "prompt_ids": last_prompt(ids, is_target),
                "messages": record["messages"][:-1],
            }
            examples.append(example | prompt_fields)
    if are_texts:
        return []
    if len(examples) < num_prompts:
        raise ValueError(
            f"answers.num_prompts={num_prompts}, and {len(examples)} held-out conversations fit a row; "
            "lower it, or raise data.num_held_out"
        )
    with at("answers"):
        check_room(policy.config, examples, settings.answers.max_completion_length)
    return examples
