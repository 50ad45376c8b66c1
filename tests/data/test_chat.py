"""Prompts, conversations and their targets, against chat templates and hand-written texts."""

import copy
import dataclasses
import itertools

import pytest

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.chat import (
    PLAIN_TEMPLATE,
    R1_ZERO_TEMPLATE,
    end_of_turn,
    last_prompt,
    render_conversation,
    render_prompt,
    render_question,
)
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.turns import turns

BYTES = byte_tokenizer()
QUESTION = "{question}\n"
THINK = "<think>\n"


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
    assert render_prompt(tokenizer, "What is 3 + 8?", template=PLAIN_TEMPLATE)[-1:] == (
        tokenizer.encode("?\n")
    )


def test_braces_of_a_question_are_text(smollm2):
    """Oracle: by hand."""
    ids = render_prompt(smollm2, "{x} and {question}", template="Q: {question} {y}")
    assert smollm2.decode(ids) == "Q: {x} and {question} {y}"


def test_plain_prompts_begin_with_bos_where_the_tokenizer_does():
    """Oracle: by hand, with a tokenizer that begins with id 5."""
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


def test_a_prompt_ends_in_the_opening_once_whatever_the_template_writes(deepseek):
    """Oracle: R1's template as released first, which stops before the thought, and as it is now."""
    example, plain = {"question": "2 + 3?"}, render_prompt(deepseek, "2 + 3?", template="chat")
    opened = [*plain, *deepseek.encode(THINK)]
    for written in ("", "<think>", THINK):
        chat = copy.copy(deepseek.chat)
        end = "{{'<｜Assistant｜>'}}"
        assert end in chat.chat_template
        escaped = written.replace("\n", "\\n")
        chat.chat_template = chat.chat_template.replace(end, f"{{{{'<｜Assistant｜>{escaped}'}}}}")
        tokenizer = dataclasses.replace(deepseek, chat=chat)
        assert render_question(tokenizer, example, template="chat", opening=THINK) == opened
    assert render_question(deepseek, example, template="chat") == plain


def test_what_was_said_before_stands_in_the_prompt(smollm2):
    """Oracle: the text that transformers renders."""
    messages = turns("Hi", "Hello", "2 + 3?", system="Be brief.")
    example = {"question": "2 + 3?", "messages": messages}
    text = smollm2.chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = render_question(smollm2, example, template="chat")
    assert smollm2.backend.decode(ids, skip_special_tokens=False) == text


def test_a_system_message_leaves_the_generation_prompt_as_it_is(deepseek):
    """Oracle: transformers' rendering with the <think> that R1's later template ends a prompt with."""
    opens = deepseek.chat.chat_template.replace(
        "'<｜Assistant｜>'}}{% endif", "'<｜Assistant｜><think>'}}{% endif"
    )
    tokenizer, messages = with_template(deepseek, opens), turns("2 + 3?", system="Be brief.")
    ids = render_question(tokenizer, {"messages": messages}, template="chat")
    rendered = tokenizer.chat.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == rendered and tokenizer.decode(ids).endswith("<think>")


THINKING = turns(
    "Hi",
    "<think>\nfirst thought\n</think>\n\nHello!",
    "And 2 + 3?",
    "<think>\n\n2 + 3 = 5\n</think>\n\nIt is 5.",
    "Thanks",
    "<think>done</think> Bye.",
)


def split_runs(tokenizer, ids, is_target):
    """(learned, text with its special tokens) of each run of ids that are learned, or not."""
    runs = itertools.groupby(zip(ids, is_target, strict=True), key=lambda pair: pair[1])
    decode = tokenizer.backend.decode
    return [
        (learned, decode([i for i, _ in run], skip_special_tokens=False)) for learned, run in runs
    ]


def with_template(tokenizer, template):
    """The same tokenizer with another chat template."""
    chat = copy.copy(tokenizer.chat)
    chat.chat_template = template
    return dataclasses.replace(tokenizer, chat=chat)


def test_deepseeks_template_keeps_every_think_when_targets_are_made(deepseek):
    """Oracle: R1's format by hand; its own template drops the earlier thoughts, which is checked too."""
    user, assistant, end = "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"
    ids, is_target = render_conversation(deepseek, THINKING, template="chat")
    texts = [message["content"] for message in THINKING]
    assert split_runs(deepseek, ids, is_target) == [
        (False, f"<｜begin▁of▁sentence｜>{user}{texts[0]}{assistant}"),
        (True, texts[1] + end),
        (False, f"{user}{texts[2]}{assistant}"),
        (True, texts[3] + end),
        (False, f"{user}{texts[4]}{assistant}"),
        (True, texts[5] + end),
    ]
    assert ids.count(deepseek.backend.token_to_id("<think>")) == 3
    assert "first thought" not in deepseek.chat.apply_chat_template(THINKING, tokenize=False)


FAITHFUL = [
    turns("What is 2 + 3?", "2 + 3 = 5"),
    turns("Größe 东京?", "two  spaces, and a tab\t", " again", "1. one\n2. two\n"),
    turns("a", "b", system="You are terse.\nVery."),
]


@pytest.mark.parametrize("name", ["smollm2", "deepseek"])
@pytest.mark.parametrize("messages", FAITHFUL)
def test_ids_are_the_rendered_templates_where_it_drops_nothing(name, messages, request):
    """Oracle: the checkpoint's template over the whole conversation, by transformers. SmolLM2's writes a
    newline after the last end token, which no answer has.
    """
    tokenizer = request.getfixturevalue(name)
    ids, is_target = render_conversation(tokenizer, messages, template="chat")
    rendered = tokenizer.chat.apply_chat_template(messages)["input_ids"]
    tail = tokenizer.encode("\n") if name == "smollm2" else []
    assert ids + tail == rendered
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    learned = [i for i, target in zip(ids, is_target, strict=True) if target]
    assert learned == [i for text in answers for i in (*tokenizer.encode(text), tokenizer.eos_id)]


@pytest.mark.parametrize("name", ["smollm2", "deepseek"])
def test_a_conversation_begins_with_the_prompt_that_is_sampled_from(name, request):
    """Oracle: render_prompt, which rollouts use; last_prompt of two turns is the template's own."""
    tokenizer = request.getfixturevalue(name)
    one, two = turns("2 + 3?", "\n\n5"), turns("2 + 3?", "5", "sure?", "yes")
    rendered = render_conversation(tokenizer, one, template="chat")
    assert last_prompt(*rendered) == render_prompt(tokenizer, "2 + 3?", template="chat")
    asked = tokenizer.chat.apply_chat_template(two[:3], add_generation_prompt=True)["input_ids"]
    assert last_prompt(*render_conversation(tokenizer, two, template="chat")) == asked


TURN = "<|im_start|>{}\n{}<|im_end|>\n"
LOOP = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if FILLS and loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = LOOP.replace("FILLS", "false") + ASK
OPENS = PLAIN.replace("assistant\n{%", "assistant\n<think>\n{%")  # as later revisions of R1's
FILLS = LOOP.replace("FILLS", "true") + ASK  # as Qwen3's, whose last turn always has a <think>


@pytest.mark.parametrize("template", [OPENS, FILLS])
def test_a_think_that_the_template_writes_itself_is_not_written_twice(smollm2, template):
    """Oracle: the format by hand: each turn has the <think> of its own text."""
    tokenizer = with_template(smollm2, template)
    ids, _ = render_conversation(tokenizer, THINKING, template="chat")
    wanted = "".join(TURN.format(m["role"], m["content"]) for m in THINKING)
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == wanted.removesuffix("\n")


@pytest.mark.parametrize(
    "template, words",
    [
        (PLAIN.replace("{{ m.content", "{{ loop.index"), "writes 0 of 1 assistant's"),
        (PLAIN.replace("<|im_start|>assistant\n{%", "go on:{%"), "asks for an assistant's"),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }} END {% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            "ends an assistant's turn with ' END '",
        ),
    ],
)
def test_a_template_that_hides_what_an_assistant_says_is_refused(smollm2, template, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match=words):
        render_conversation(with_template(smollm2, template), turns("a", "b"), template="chat")


def test_a_template_of_text_asks_each_question_alike():
    """Oracle: by hand, in bytes, with and without a bos."""
    messages = turns("1+1?", "<think>two</think>2", "and?", "no")
    wanted = [(False, b"1+1?\n"), (True, b"<think>two</think>2"), (False, b"and?\n"), (True, b"no")]
    for bos_id in (None, 258):
        tokenizer = dataclasses.replace(BYTES, bos_id=bos_id)
        ids, is_target = render_conversation(tokenizer, messages, template=QUESTION)
        by_hand = [] if bos_id is None else [(258, False)]
        for learned, text in wanted:
            by_hand += [(byte, learned) for byte in text] + [(BYTES.eos_id, True)] * learned
        assert list(zip(ids, is_target, strict=True)) == by_hand
    ids, is_target = render_conversation(BYTES, messages[:2], template="r1_zero")
    assert bytes(last_prompt(ids, is_target)).decode() == R1_ZERO_TEMPLATE.replace(
        "{question}", "1+1?"
    )


@pytest.mark.parametrize(
    "messages, template, words",
    [
        (turns("a", "b", system="s"), QUESTION, "no place for a system message"),
        (turns("a", "b"), "no question", "has no place for the question"),
        (turns("a", "b"), "chat", "this tokenizer has no chat template"),
    ],
)
def test_what_cannot_be_rendered_is_refused(messages, template, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match=words):
        render_conversation(BYTES, messages, template=template)


def test_a_turn_ends_as_the_template_has_it(smollm2):
    """Oracle: SmolLM2's own special token; a template of text ends with the tokenizer's eos."""
    assert end_of_turn(smollm2, "chat") == smollm2.backend.token_to_id("<|im_end|>")
    assert end_of_turn(BYTES, QUESTION) == BYTES.eos_id


def test_an_end_token_within_a_text_is_refused(smollm2):
    """Oracle: the words a reader needs; one at the end would be learned twice."""
    for text in ("5<|im_end|>", "<|im_end|>5"):
        with pytest.raises(ValueError, match="has an end-of-turn token in it"):
            render_conversation(smollm2, turns("a", text), template="chat")
