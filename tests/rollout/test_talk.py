"""Conversations with a policy, against the answers that it gives to whole prompts."""

import dataclasses

import flax.linen as nn
import jax
import pytest
import transformers

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.models import init_params
from deepseek_jax.rollout import AnswerOptions
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.talk import Talk
from tests.reliability.goods import CHAT
from tests.tiny import CONFIGS, kept, random_leaves

LENGTH = 6
GREEDY = Sampling(0.0)


def chatting_bytes():
    """The tokenizer of bytes with a chat template."""
    tokenizer = byte_tokenizer()
    # As a chat template writes it
    tokenizer.backend.encode_special_tokens = False
    chat = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token="<eos>", pad_token="<pad>", chat_template=CHAT
    )
    return dataclasses.replace(tokenizer, chat=chat)


@pytest.fixture(scope="module")
def policy():
    """A random model of bytes with a chat template."""
    tokenizer = chatting_bytes()
    sizes = dict(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    config = dataclasses.replace(CONFIGS["gqa"], **sizes)
    make = jax.jit(lambda rng: nn.unbox(random_leaves(init_params(config, rng), rng)))
    params = kept(repr(config), lambda: make(jax.random.key(0)))
    return Policy(config, params, tokenizer, "chat")


def answer(policy, *texts):
    """The greedy answer to the last text of a conversation, whole."""
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    options = AnswerOptions(max_completion_length=LENGTH, temperature=0.0, slots=1)
    return policy.answer(policy.with_prompts([{"messages": messages}]), options).texts[0]


def said(talk, text):
    return "".join(talk.answer(text, 0))


def test_turns_are_asked_with_those_before(policy):
    """Oracle: Policy.answer to the whole conversation, in the tokenizer's own chat template."""
    talk = Talk(policy, GREEDY, LENGTH)
    first = said(talk, "é?")
    assert talk.holds_turns and first == answer(policy, "é?")
    second = said(talk, "again")
    assert second == answer(policy, "é?", first, "again") != answer(policy, "again")
    talk.reset()
    assert said(talk, "again") == answer(policy, "again")


def test_a_template_of_one_question_asks_each_by_itself(policy):
    """Oracle: the answer to the question alone, with the first seed and with another one."""
    talk = Talk(dataclasses.replace(policy, template="Q: {question}\n"), GREEDY, LENGTH)
    alone = answer(talk.policy, "1?")
    said(talk, "2?")
    assert not talk.holds_turns and said(talk, "1?") == alone


def test_what_was_read_of_an_answer_that_is_left_stays(policy):
    """Oracle: the pieces that were read."""
    talk = Talk(policy, GREEDY, LENGTH)
    pieces, read = talk.answer("abc", 0), ""
    while not read:
        read += next(pieces)
    pieces.close()
    assert [message["content"] for message in talk.messages] == ["abc", read]


def test_a_text_that_cannot_be_asked_is_refused_and_forgotten(policy):
    """Oracle: the words a reader needs; the turns as they were."""
    talk = Talk(policy, GREEDY, LENGTH)
    said(talk, "a")
    before = talk.messages
    words = "max_position_embeddings=128: begin a new conversation by /reset"
    with pytest.raises(ValueError, match=words):
        next(talk.answer("x" * 200, 0))
    assert talk.messages == before
