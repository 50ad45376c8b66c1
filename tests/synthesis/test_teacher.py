"""What a teacher's answers begin with."""

import copy
import dataclasses

import pytest

from deepseek_jax.data.read_tokenizer import deepseek_tokenizer
from deepseek_jax.rollout import Policy
from deepseek_jax.synthesis.teacher import check_opening

END = "{{'<｜Assistant｜>'}}"


@pytest.mark.parametrize("written", ["", "<think>", "<think>\n"])
def test_an_opening_is_needed_where_the_chat_template_writes_think(written):
    """Oracle: by hand: R1's template as it was released first, which stops before the thought, and later ones
    that write its beginning: without an opening the dataset would lack it.
    """
    tokenizer = deepseek_tokenizer()
    chat = copy.copy(tokenizer.chat)
    escaped = written.replace("\n", "\\n")
    chat.chat_template = chat.chat_template.replace(END, f"{{{{'<｜Assistant｜>{escaped}'}}}}")
    policy = Policy(None, None, dataclasses.replace(tokenizer, chat=chat), "chat")

    def check(policy):
        (asked,) = policy.with_prompts([{"question": "2 + 3?"}])
        check_opening(policy, asked["prompt_ids"])

    check(dataclasses.replace(policy, opening="<think>\n"))
    if not written:
        check(policy)
    else:
        with pytest.raises(
            ValueError, match="^opening='', and the chat template opens .* set it to"
        ):
            check(policy)
