"""A line in the prompt, against chat templates and texts written by hand."""

import copy
import dataclasses

import pytest

from deepseek_jax.data.chat import render_prompt, render_question
from deepseek_jax.reinforce.effort import check_line
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer
from tests.turns import turns

LINE = "Reasoning Effort: 75\n"
ASKED = {"question": "2 + 3?"}


def refusing(tokenizer, template):
    """The same tokenizer with another chat template."""
    chat = copy.copy(tokenizer.chat)
    chat.chat_template = template
    return dataclasses.replace(tokenizer, chat=chat)


def test_a_chat_has_the_line_in_its_system_message(smollm2):
    """Oracle: the text that transformers renders of the messages, written by hand."""
    messages = [{"role": "system", "content": "Reasoning Effort: 75"}, *turns("2 + 3?")]
    text = smollm2.chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nReasoning Effort: 75<|im_end|>\n")
    ids = render_question(smollm2, ASKED | {"line": LINE}, template="chat")
    assert smollm2.backend.decode(ids, skip_special_tokens=False) == text


def test_a_system_message_that_is_there_follows_the_line(smollm2):
    """Oracle: the text that transformers renders of the messages, written by hand."""
    asked = turns("Hi", "Hello", "2 + 3?", system="Be brief.")
    wanted = turns("Hi", "Hello", "2 + 3?", system="Reasoning Effort: 75\nBe brief.")
    text = smollm2.chat.apply_chat_template(wanted, tokenize=False, add_generation_prompt=True)
    example = {"question": "2 + 3?", "messages": asked}
    ids = render_question(smollm2, example | {"line": LINE}, template="chat")
    assert smollm2.backend.decode(ids, skip_special_tokens=False) == text
    assert asked[0]["content"] == "Be brief."


@pytest.mark.parametrize(
    "tokenizer, line, template, question, text",
    [
        (arithmetic_tokenizer(), "75; ", "{question}\n", "What is 2?", "75; What is 2?\n"),
        (bilingual_tokenizer(), "75\n", "r1_zero", "2 + 3", "User: 75\n2 + 3. Assistant:"),
    ],
)
def test_a_plain_prompt_has_the_line_before_its_question(tokenizer, line, template, question, text):
    """Oracle: by hand, in worlds that know digits and no word for effort."""
    check_line(tokenizer, line, template)
    ids = render_question(tokenizer, {"question": question, "line": line}, template=template)
    assert tokenizer.decode(ids).endswith(text)


def test_in_a_plain_conversation_each_question_has_the_line():
    """Oracle: render_question of the same conversation with the line written into its questions."""
    tokenizer = arithmetic_tokenizer()
    said, wanted = (turns(f"{b}What is 1", "1", f"{b}What is 2") for b in ("", "75; "))
    ids = render_question(tokenizer, {"messages": said, "line": "75; "}, template="{question}?\n")
    assert ids == render_question(tokenizer, {"messages": wanted}, template="{question}?\n")


def test_without_a_line_the_prompt_is_the_plain_one(smollm2):
    """Oracle: render_prompt."""
    ids = render_question(smollm2, ASKED | {"line": ""}, template="chat")
    assert ids == render_prompt(smollm2, "2 + 3?", template="chat")


@pytest.mark.parametrize(
    "template, words",
    [
        ("{{ raise_exception('No system here') }}", "refuses a system message .*No system here"),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            "leaves a system message out",
        ),
    ],
)
def test_a_chat_without_room_for_a_system_message_is_refused(smollm2, template, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match=f"(?s)^line=.*no room in template='chat'.*{words}"):
        check_line(refusing(smollm2, template), LINE, "chat")


def test_a_line_of_words_that_a_world_does_not_know_is_refused():
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match="^line='Reasoning Effort: 75.n' has words that this tok"):
        check_line(arithmetic_tokenizer(), LINE, "{question}\n")


@pytest.mark.parametrize("name", ["smollm2", "deepseek"])
def test_released_chats_have_room_for_the_line(name, request):
    """Oracle: their own templates."""
    check_line(request.getfixturevalue(name), LINE, "chat")
