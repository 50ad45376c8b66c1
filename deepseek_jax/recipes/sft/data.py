"""The conversations of a fine-tuning: read, checked before anything is trained, and put on the mesh."""

import functools

import numpy as np

from deepseek_jax.data.conversations import last_prompt, pack_conversations, render_numbered
from deepseek_jax.data.messages import (
    read_conversations,
    what_it_answers,
    worked_conversations,
)
from deepseek_jax.data.sources import hold_out
from deepseek_jax.errors import at
from deepseek_jax.parallel.processes import say
from deepseek_jax.rollout.policy import check_room
from deepseek_jax.worlds.registry import find_questions

CHECKED = 1000  # conversations looked at before a run starts: seconds, and most mistakes show


def load_conversations(settings, folder):
    """(to train on, held out), each random access to conversations. settings: SftSettings.

    A jsonl file is written below `folder` as a dataset.
    """
    data = settings.data
    with at("data"):
        if data.path is not None:
            source = read_conversations(data.path, folder, data.split)
            return hold_out(source, data.num_held_out, what_it_answers)
        _, questions = find_questions(data.task)
        task = questions.make(settings.seed, data.num_held_out)
    return tuple(worked_conversations(e, questions.worked) for e in (task.train, task.held_out))


def check_conversations(policy, source, kind, shares, rows):
    """Render the first CHECKED conversations, and say what they are like and how many are too long.

    rows: of rows_of. Raises ValueError where one cannot be rendered or goes
    beyond the model's vocabulary, and where one of `shares` that the processes read would have none that fits
    a row: it would search for ever.
    """
    template, length = rows["template"], rows["sequence_length"]
    lengths, targets = [], []
    for index in range(min(len(source), CHECKED)):
        ids, is_target = render_numbered(policy.tokenizer, source[index], index, template=template)
        if max(ids) >= policy.config.vocab_size:
            raise ValueError(
                f"conversation {index} of the data has token {max(ids)}, and the model's vocab_size is "
                f"{policy.config.vocab_size}; give the tokenizer that belongs to the model"
            )
        lengths.append(len(ids))
        targets.append(sum(is_target))
    lengths, targets = np.array(lengths), np.array(targets)
    fits = lengths <= length
    if not all(fits[share::shares].any() for share in range(shares)):
        raise ValueError(
            f"sequence_length={length}: only {fits.sum()} of the first {len(fits)} {kind} conversations fit "
            f"a row; the shortest has {lengths.min()} tokens"
        )
    fitting = lengths[fits]
    filled = fits.mean() * len(source) * (fitting.mean() / length if rows["packing"] else 1)
    say(
        f"{len(source)} {kind} conversations; {len(fits)} looked at: {fitting.mean():.1f} tokens on average, "
        f"{targets[fits].mean():.1f} of them learned, {(~fits).sum()} longer than {length} and left out; "
        f"about {filled / rows['batch_size']:.1f} batches"
    )


def held_out_prompts(settings, policy, source):
    """Examples with prompt_ids: what is asked of the first held-out conversations that fit a row.

    prompt_ids: up to the last assistant's text. An example is what an answer is scored by; of a conversation
    that brings no question and answer of its own, the last two messages.
    Raises ValueError where prompt and answer go beyond the positions that the model knows.
    """
    examples, wanted = [], settings.answers.num_prompts
    render = functools.partial(render_numbered, policy.tokenizer, template=policy.template)
    for index in range(len(source)):
        record = source[index]
        ids, is_target = render(record, index)
        if len(ids) <= settings.sequence_length and len(examples) < wanted:
            question, answer = (message["content"] for message in record["messages"][-2:])
            more = {"prompt_ids": last_prompt(ids, is_target)}
            examples.append({"question": question, "answer": answer} | record | more)
    if len(examples) < wanted:
        raise ValueError(
            f"answers.num_prompts={wanted}, and {len(examples)} held-out conversations fit; lower it, or "
            "raise data.num_held_out"
        )
    with at("answers"):
        check_room(policy.config, examples, settings.answers.max_completion_length)
    return examples


def rows_of(settings, template):
    """The rows that settings ask for, as data.conversations.pack_conversations takes them."""
    return {
        "template": template,
        "sequence_length": settings.sequence_length,
        "batch_size": settings.batch_size,
        "packing": settings.data.packing,
    }


def packed(settings, policy, source, **kwargs):
    """data.conversations.pack_conversations as the settings say, in the policy's tokens and template."""
    rows = rows_of(settings, policy.template)
    return pack_conversations(source, policy.tokenizer, seed=settings.seed, **rows, **kwargs)
