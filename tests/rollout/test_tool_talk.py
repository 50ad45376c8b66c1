"""Conversations of a person with a policy that has tools or an environment, against Policy.answer's."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from deepseek_jax.data.tools import Call
from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.models import init_params
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.settings import AnswerOptions, ConversationLimits
from deepseek_jax.rollout.tool_talk import ToolTalk
from deepseek_jax.training.completions import shown_text
from tests.quick import others_slow
from tests.rollout.conversing import QUESTIONS, asked, opened, talking
from tests.rollout.test_talk import chatting_bytes
from tests.tiny import CONFIGS, kept, random_leaves, tiny_model

GREEDY = Sampling(0.0)
LENGTH = 80
ADD = "deepseek_jax.worlds.calculator.tools:add"
FIRST, SECOND, CALL = "1 + 2?", "sure?", "add(a=1, b=2)"


def said(talk, text, seed=0):
    return "".join(talk.answer(text, seed))


def lines_of(conversation):
    """What a chat shows of a conversation with an environment."""
    lines = [shown_text({"messages": conversation.messages})]
    if conversation.cut:
        limit = conversation.cut.replace("max_completion_length", "max_tokens")
        lines.append(f"ended by {limit}")
    if conversation.reward is not None:
        lines.append(f"reward {conversation.reward:.4g}")
    return "\n".join(lines)


def greedily(policy, examples, seed=0, length=LENGTH):
    """The conversations of Policy.answer."""
    options = AnswerOptions(max_completion_length=length, temperature=0.0, slots=1)
    return policy.answer(examples, options, seed=seed).conversations


def test_an_environment_answers_as_in_a_rollout():
    """Oracle: Policy.answer's conversations, greedily: of several turns, and some of one turn."""
    with talking(*tiny_model("gqa")) as policy:
        talk = ToolTalk(policy, GREEDY, LENGTH)
        found = [said(talk, question, seed=3) for question in QUESTIONS]
        conversations = greedily(policy, asked(policy), seed=3)
    assert not talk.holds_turns and found == list(map(lines_of, conversations))
    assert len({c.turns for c in conversations}) > 1


@pytest.mark.parametrize(
    ("template", "has_state", "holds"),
    [("chat", False, True), ("chat", True, False), ("{question}", False, False)],
)
def test_turns_are_held_where_prompts_have_turns_and_nothing_else_has_a_state(
    template, has_state, holds
):
    """Oracle: by hand."""
    tools = SimpleNamespace(environments=SimpleNamespace(has_state=has_state))
    policy = SimpleNamespace(template=template, tools=tools)
    assert ToolTalk(policy, GREEDY, LENGTH).holds_turns is holds


@pytest.mark.parametrize(
    "limits",
    others_slow([dict(turns=1), dict(turn_length=2), dict(turn_length=None)], dict(turns=1)),
)
def test_a_limit_ends_a_conversation_with_a_line_that_says_so(limits):
    """Oracle: Policy.answer's conversations under the same limit, and the reason of their end."""
    length = 20
    with talking(*tiny_model("gqa"), **limits) as policy:
        found = [said(ToolTalk(policy, GREEDY, length), question) for question in QUESTIONS]
        conversations = greedily(policy, asked(policy), length=length)
    assert found == list(map(lines_of, conversations))
    ((name, limit),) = limits.items()
    words = f"conversation.{name}={limit}" if limit else f"max_tokens={length}"
    assert any(f"{words}\nreward" in text for text in found)


ROW = """
class Env:
    def reset(self, number, **row):
        self.number = number
        return f"{row['question']}{number}"
    def step(self, text: str) -> str | None:
        return None
"""


def test_a_row_of_data_gives_reset_its_columns_and_what_it_refuses_is_not_asked(tmp_path):
    """Oracle: the conversation of this row; the words that a reader needs."""
    (tmp_path / "env.py").write_text(ROW)
    with talking(*tiny_model("gqa"), environment=f"{tmp_path / 'env.py'}:Env") as policy:
        talk = ToolTalk(policy, GREEDY, LENGTH)
        row = {"question": "3", "number": 14}
        (conversation,) = greedily(policy, policy.with_prompts([row]))
        wanted = lines_of(conversation)
        assert said(talk, '{"question": "3", "number": 14}') == wanted
        for text, words in {
            "3": "environment: reset of env.py gets every column .question.: .*'number'",
            '{"number": 1': "is a row of data, as JSON",
            '{"number": 1}': 'no text "question"',
        }.items():
            with pytest.raises(ValueError, match=words):
                said(talk, text)
        assert said(talk, '{"question": "3", "number": 14}') == wanted


@pytest.fixture(scope="module")
def calling():
    """(policy with a calculator, the ids of a conversation that it has learned by heart)."""
    tokenizer = chatting_bytes()
    sizes = dict(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    config = dataclasses.replace(CONFIGS["gqa"], max_position_embeddings=1024, **sizes)
    policy = Policy(config, None, tokenizer, "chat")
    fields = dict(
        tools=(ADD,), environment=None, conversation=ConversationLimits(turns=2, turn_length=20)
    )
    with opened(policy, **fields) as policy:
        form, end = policy.tools.form, [tokenizer.eos_id]
        prompt = policy.tools.prompt({"question": FIRST})
        row = [*tokenizer.encode(CALL), *end, *form.results([Call("add", {})], ["3"])]
        row += [*tokenizer.encode("3"), *end, *form.user(SECOND), *tokenizer.encode("yes"), *end]
        params = kept(f"{config} {prompt} {row}", lambda: learned(config, prompt, row))
        yield policy.with_params(params), [*prompt, *row]


def learned(config, prompt, row):
    """Parameters of a model that writes this row after this prompt."""
    prompt, row = (jnp.array([ids]) for ids in (prompt, row))
    batch = dict(prompt_ids=prompt, prompt_mask=jnp.ones(prompt.shape, bool))
    batch |= dict(completion_ids=row, completion_mask=jnp.ones(row.shape, bool))
    optimizer = optax.adam(1e-2)

    def loss(params):
        return -completion_logprobs(config, params, batch)[0].mean()

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    rng = jax.random.key(0)
    params = jax.jit(lambda rng: nn.unbox(random_leaves(init_params(config, rng), rng)))(rng)
    state, value = optimizer.init(params), 1.0
    for _ in range(400):
        if value < 1e-2:
            break
        params, state, value = step(params, state)
    assert value < 1e-2, value
    return params


def test_a_call_and_what_its_tool_answers_are_shown_between_turns(calling):
    """Oracle: Policy.answer's conversation, whose lines follow by hand; its ids, token by token."""
    policy, ids = calling
    talk = ToolTalk(policy, GREEDY, LENGTH)
    found = said(talk, FIRST)
    (conversation,) = greedily(policy, policy.with_prompts([{"question": FIRST}]))
    lines = shown_text({"messages": conversation.messages})
    assert lines == f"call  {CALL}\ntool  3\nmodel 3" and found == f"model {CALL}\n{lines}"
    assert talk.ids == ids[: len(talk.ids)]


def test_a_later_text_follows_what_was_sampled_until_a_reset(calling):
    """Oracle: the ids of the whole conversation, by hand from its parts."""
    policy, ids = calling
    talk = ToolTalk(policy, GREEDY, LENGTH)
    first = said(talk, FIRST)
    assert talk.holds_turns and said(talk, SECOND) == "model yes" and talk.ids == ids
    talk.reset()
    assert said(talk, FIRST) == first


def test_a_turn_that_is_left_early_ends_there(calling):
    """Oracle: the tokens that were read, and an end token."""
    policy, ids = calling
    talk, prompt = ToolTalk(policy, GREEDY, LENGTH), policy.tools.prompt({"question": FIRST})
    pieces, read = talk.answer(FIRST), ""
    while read != "model add":
        read += next(pieces)
    pieces.close()
    assert talk.ids == [*ids[: len(prompt) + len("add")], policy.tokenizer.eos_id]


def test_a_text_without_a_position_left_is_refused_and_forgotten(calling):
    """Oracle: the words a reader needs; the ids as they were."""
    policy, ids = calling
    talk = ToolTalk(policy, GREEDY, LENGTH)
    said(talk, FIRST)
    before = talk.ids
    with pytest.raises(ValueError, match="max_position_embeddings=1024: begin a new conversation"):
        next(talk.answer("x" * 1000))
    assert talk.ids == before
