"""The conversations of a fine-tuning: read them, check them before anything is trained, pack them."""

import functools
from pathlib import Path

import numpy as np

from deepseek_jax.data.chat import last_prompt
from deepseek_jax.data.conversations import pack_conversations, render_numbered
from deepseek_jax.data.messages import (
    read_conversations,
    what_it_answers,
    worked_conversations,
)
from deepseek_jax.data.packing import Rows
from deepseek_jax.data.sources import hold_out
from deepseek_jax.errors import at
from deepseek_jax.parallel.processes import say
from deepseek_jax.recipes.sft.settings import FineTuneSettings, SftSettings
from deepseek_jax.rollout.policy import Policy, check_room
from deepseek_jax.worlds.registry import find_questions

# Conversations that are rendered before a run starts: it takes seconds and shows most mistakes
CHECKED = 1000


def load_conversations(settings: SftSettings, folder: Path):
    """(training set, held-out set), each random access to conversations. A jsonl file becomes a dataset in
    `folder`.
    """
    data = settings.data
    with at("data"):
        if data.path is not None:
            source = read_conversations(data.path, folder, data.split)
            return hold_out(source, data.num_held_out, what_it_answers)
        _, questions = find_questions(data.task)
        task = questions.make(settings.seed, data.num_held_out)
    return tuple(worked_conversations(e, questions.worked) for e in (task.train, task.held_out))


def check_conversations(policy: Policy, source, kind: str, rows: Rows):
    """Render the first CHECKED conversations, and print their lengths and how many are too long.

    kind: "training" or "held-out", for messages. Raises ValueError where a conversation cannot be rendered or
    has a token outside the model's vocabulary, and where no conversation of a reader fits a row: it would
    search for ever.
    """
    length, readers = rows.sequence_length, rows.readers
    lengths, targets = [], []
    render = functools.partial(render_numbered, policy.tokenizer, template=policy.template)
    for index in range(min(len(source), CHECKED)):
        ids, is_target = render(source[index], index)
        # Under jit a token beyond the embedding would raise no error
        if max(ids) >= policy.config.vocab_size:
            raise ValueError(
                f"conversation {index} of the data has token {max(ids)}, and the model's vocab_size is "
                f"{policy.config.vocab_size}; give the model's own tokenizer"
            )
        lengths.append(len(ids))
        targets.append(sum(is_target))
    lengths, targets = np.array(lengths), np.array(targets)
    fits = lengths <= length
    # Reader i reads every readers-th conversation from i on
    if not all(fits[reader::readers].any() for reader in range(readers)):
        raise ValueError(
            f"sequence_length={length} is too short: {fits.sum()} of the first {len(fits)} {kind} "
            f"conversations fit a row, and the shortest has {lengths.min()} tokens; raise it"
        )
    fitting = lengths[fits]
    filled = fits.mean() * len(source) * (fitting.mean() / length if rows.packing else 1)
    say(
        f"{len(source)} {kind} conversations; the first {len(fits)}: {fitting.mean():.1f} tokens on average, "
        f"{targets[fits].mean():.1f} of them learned, {(~fits).sum()} longer than {length} and left out; "
        f"about {filled / rows.batch_size:.1f} batches"
    )


def held_out_prompts(settings: SftSettings, policy: Policy, source):
    """Examples from the first held-out conversations that fit a row, to answer and to score.

    prompt_ids: the conversation up to the last assistant's text. question and answer: the conversation's own
    fields, or else its last two messages. Raises ValueError where prompt and answer exceed the model's
    positions, and where fewer than answers.num_prompts fit.
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
            f"answers.num_prompts={wanted}, and {len(examples)} held-out conversations fit a row; lower it, "
            "or raise data.num_held_out"
        )
    with at("answers"):
        check_room(policy.config, examples, settings.answers.max_completion_length)
    return examples


def rows_of(settings: FineTuneSettings, *, held_out: bool = False):
    """The Rows of these settings; those of the held-out conversations have one reader."""
    fields = dict(sequence_length=settings.sequence_length, batch_size=settings.batch_size)
    fields["packing"] = settings.data.packing
    # ConversationLoss needs every held-out conversation on every process
    return Rows(**fields, readers=1 if held_out else settings.data.readers)


def packed(settings: FineTuneSettings, policy: Policy, source, rows: Rows, **epochs):
    """pack_conversations with the settings' seed and the policy's tokenizer and template."""
    how = dict(template=policy.template, seed=settings.seed)
    return pack_conversations(source, policy.tokenizer, rows, **how, **epochs)
