"""Prompts, rendered as the checkpoint and the paper render them."""

import dataclasses

import pytest

from deepseek_jax.data.chat import render_prompt
from deepseek_jax.worlds.arithmetic.corpus import PROMPT_TEMPLATE
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer


def test_chat_prompt_is_the_checkpoints_own(smollm2):
    """Oracle: the text that transformers renders, encoded apart."""
    question = "Tom has 3 apples and buys 8 more. How many?"
    text = smollm2.chat.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith(f"{question}<|im_end|>\n<|im_start|>assistant\n")
    ids = render_prompt(smollm2, question, template="chat")
    assert ids == smollm2.chat(text, add_special_tokens=False).input_ids
    assert isinstance(ids, list)


def test_r1_zero_prompt_is_the_papers_text(smollm2):
    """Oracle: Table 1 of arXiv:2501.12948, copied here; its own full stop follows the question."""
    lines = """A conversation between User and Assistant. The user asks a question, and the
Assistant solves it. The assistant first thinks about the reasoning process in the mind and then
provides the user with the answer. The reasoning process and answer are enclosed within <think>
</think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think>
<answer> answer here </answer>. User: What is 2 + 3?. Assistant:"""
    text = lines.replace("\n", " ")
    ids = render_prompt(smollm2, "What is 2 + 3?", template="r1_zero")
    assert smollm2.decode(ids) == text


def test_plain_template_puts_the_question_in_its_place():
    """Oracle: by hand; braces in the question are text."""
    tokenizer = arithmetic_tokenizer()
    ids = render_prompt(tokenizer, "What is 3 + 8", template="{question}?\n1, ")
    assert ids == tokenizer.encode("What is 3 + 8?\n1, ")
    assert render_prompt(tokenizer, "What is 3 + 8?", template=PROMPT_TEMPLATE)[-1:] == (
        tokenizer.encode("?\n")
    )


def test_braces_of_a_question_are_text(smollm2):
    """Oracle: by hand."""
    ids = render_prompt(smollm2, "{x} and {question}", template="Q: {question} {y}")
    assert smollm2.decode(ids) == "Q: {x} and {question} {y}"


def test_plain_prompts_begin_with_bos_where_the_tokenizer_does():
    """Oracle: by hand, the tokenizer told to begin with id 5."""
    tokenizer = dataclasses.replace(arithmetic_tokenizer(), bos_id=5)
    ids = render_prompt(tokenizer, "What is 3", template="{question}?\n")
    assert ids == [5, *tokenizer.encode("What is 3?\n")]


@pytest.mark.parametrize(
    ("question", "template", "complaint"),
    [
        ("What is 3", "no place for it", "^template='no place for it'.*{question}"),
        ("What is 3", "chat", "^template=.*no chat template"),
        (" \n", "{question}", "empty"),
    ],
)
def test_prompts_that_cannot_be_rendered_are_refused(question, template, complaint):
    """Oracle: the message says what is missing."""
    with pytest.raises(ValueError, match=complaint):
        render_prompt(arithmetic_tokenizer(), question, template=template)
