"""Conversations of tiny models for tests: random texts, of which every fourth or so ends a turn."""

import contextlib
import dataclasses
import string
from pathlib import Path

from deepseek_jax.data.tokenizer import closed_tokenizer
from deepseek_jax.recipes.conversing import conversing, open_environments
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.settings import AnswerOptions, ConversationLimits, Conversing
from tests.environments.calls import one_reader

REPLIES = f"{Path(__file__).parent / 'files' / 'replies.py'}:Replies"
TEMPLATE = "{question}\n"
QUESTIONS = ["3", "14", "159", "2653", "58979"]
TURNS = dict(turns=4, turn_length=9, call_steps=2)


def letters(vocab_size: int):
    """A tokenizer of so many tokens, digits, letters and the line break among them."""
    pieces = (*string.digits, "\n", "<think>", *string.ascii_letters)[: vocab_size - 2]
    # No text has these
    return closed_tokenizer((*pieces, *(f"<{i}>" for i in range(vocab_size - 2 - len(pieces)))))


@contextlib.contextmanager
def talking(config, params, *, environment=REPLIES, tools=(), template=TEMPLATE, **given):
    """A Policy whose answers are conversations with an environment or with tools."""
    ends = tuple(range(30, 30 + config.vocab_size // 5))
    policy = Policy(
        dataclasses.replace(config, eos_token_id=ends),
        params,
        letters(config.vocab_size),
        template,
    )
    limits = ConversationLimits(**TURNS | given)
    with opened(policy, tools=tools, environment=environment, conversation=limits) as policy:
        yield policy


@contextlib.contextmanager
def opened(policy, **fields):
    """The policy with tools and environment of these fields of Conversing."""
    settings = Conversing(**fields)
    with contextlib.ExitStack() as stack:
        with one_reader():
            environments = open_environments(settings, stack)
        yield conversing(policy, environments, settings)


def asked(policy, questions=QUESTIONS):
    """The examples that ask these, with their prompt_ids."""
    return policy.with_prompts([{"question": question} for question in questions])


def answered(policy, log=None, n=3, **options):
    """The policy's Answers to all questions."""
    options = AnswerOptions(**dict(max_completion_length=80, slots=4) | options)
    return policy.answer(asked(policy), options, n=n, seed=5, log=log)
