"""The conversations of a fine-tuning: read, checked before anything is trained, and put on the mesh."""

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
from deepseek_jax.worlds.registry import find_questions

CHECKED = 1000  # conversations looked at before a run starts: seconds, and most mistakes show


def load_conversations(settings, folder):
    """(to train on, held out), each random access to conversations. settings: SftSettings.

    A jsonl file is written below `folder` as a dataset.
    """
    data = settings.data
    with at("config.data"):
        if data.path is not None:
            source = read_conversations(data.path, folder, data.split)
            return hold_out(source, data.num_held_out, what_it_answers)
        _, questions = find_questions(data.task)
        task = questions.make(settings.seed, data.num_held_out)
    return tuple(worked_conversations(e, questions.worked) for e in (task.train, task.held_out))


def check_conversations(config, tokenizer, source, kind, shares, rows, path="config"):
    """Render the first CHECKED conversations, and say what they are like and how many are too long.

    rows: of rows_of, from the config block `path`. Raises ValueError where one cannot be rendered or goes
    beyond the model's vocabulary, and where one of `shares` that the processes read would have none that fits
    a row: it would search for ever.
    """
    template, length = rows["template"], rows["sequence_length"]
    lengths, targets = [], []
    for index in range(min(len(source), CHECKED)):
        ids, is_target = render_numbered(tokenizer, source[index], index, template=template)
        if max(ids) >= config.vocab_size:
            raise ValueError(
                f"conversation {index} of the data has token {max(ids)}, and the model's vocab_size is "
                f"{config.vocab_size}; give the tokenizer that belongs to the model"
            )
        lengths.append(len(ids))
        targets.append(sum(is_target))
    lengths, targets = np.array(lengths), np.array(targets)
    fits = lengths <= length
    if not all(fits[share::shares].any() for share in range(shares)):
        raise ValueError(
            f"only {fits.sum()} of the first {len(fits)} {kind} conversations fit in "
            f"{path}.sequence_length={length}; the shortest has {lengths.min()} tokens"
        )
    fitting = lengths[fits]
    filled = fits.mean() * len(source) * (fitting.mean() / length if rows["packing"] else 1)
    say(
        f"{len(source)} {kind} conversations; {len(fits)} looked at: {fitting.mean():.1f} tokens on average, "
        f"{targets[fits].mean():.1f} of them learned, {(~fits).sum()} longer than {length} and left out; "
        f"about {filled / rows['batch_size']:.1f} batches"
    )


def held_out_prompts(settings, config, tokenizer, source):
    """(prompts, examples): what is asked of the first held-out conversations that fit a row.

    prompts: ids up to the last assistant's text. examples: by which an answer is scored; of conversations
    that bring no question and answer of their own, the last two messages.
    Raises ValueError where prompt and answer go beyond the positions that the model knows.
    """
    prompts, examples = [], []
    wanted, template = settings.answers.num_prompts, settings.data.template
    for index in range(len(source)):
        record = source[index]
        ids, is_target = render_numbered(tokenizer, record, index, template=template)
        if len(ids) <= settings.sequence_length and len(prompts) < wanted:
            question, answer = (message["content"] for message in record["messages"][-2:])
            prompts.append(last_prompt(ids, is_target))
            examples.append({"question": question, "answer": answer} | record)
    if len(prompts) < wanted:
        raise ValueError(
            f"config.answers.num_prompts={wanted}, and {len(prompts)} held-out conversations fit; lower "
            "it, or raise config.data.num_held_out"
        )
    longest = max(map(len, prompts)) + settings.answers.max_completion_length
    if longest > config.max_position_embeddings:
        raise ValueError(
            "config.answers.max_completion_length="
            f"{settings.answers.max_completion_length} behind the longest prompt makes {longest} tokens, "
            f"beyond the model's max_position_embeddings={config.max_position_embeddings}; lower it"
        )
    return prompts, examples


def rows_of(settings):
    """The rows that settings ask for, as data.conversations.pack_conversations takes them."""
    return {
        "template": settings.data.template,
        "sequence_length": settings.sequence_length,
        "batch_size": settings.batch_size,
        "packing": settings.data.packing,
    }


def packed(settings, tokenizer, source, **kwargs):
    """data.conversations.pack_conversations as the settings say."""
    return pack_conversations(source, tokenizer, seed=settings.seed, **rows_of(settings), **kwargs)
