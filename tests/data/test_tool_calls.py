"""Calls of tools in a model's text, against TRL's parser, templates' renderings and by hand."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from trl.chat_template_utils import add_response_schema, parse_response

from deepseek_jax.data.chat import end_of_turn
from deepseek_jax.data.deepseek_v32 import DeepseekV32Chat
from deepseek_jax.data.tools import Call, tool_form
from tests.data.tool_turns import CALLS, SCHEMAS, THOUGHT, raw_calls

HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": -2}}\n</tool_call>'
ROLL = '<tool_call>{"name": "roll", "arguments": {}}</tool_call>'
LLAMA = '{"name": "add", "parameters": {"a": 1, "b": -2}}'
INVOKED = """\n\n<｜DSML｜function_calls>
<｜DSML｜invoke name="look_up">
<｜DSML｜parameter name="word" string="true">1"</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="add">
<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>
<｜DSML｜parameter name="b" string="false">-2</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>"""


@pytest.fixture(scope="module")
def forms(templates, deepseek):
    """The form of each name, and of "text", a template of text."""
    named = {t: tool_form(tokenizer, "chat") for t, tokenizer in templates.items()}
    v32 = dataclasses.replace(deepseek, chat=DeepseekV32Chat(deepseek.backend))
    return {
        **{form.name: form for form in named.values()},
        "deepseek_v32": tool_form(v32, "chat"),
        "text": tool_form(deepseek, "{question}\n"),
    }


@pytest.mark.parametrize(
    "name, text",
    [
        ("qwen3", HERMES),
        ("qwen2_5", f"I add.\n{HERMES}\n{ROLL}"),
        ("qwen3", f"<think>\nI could call {ROLL}\n</think>\n\n{HERMES}"),
        ("qwen3", "<think>\nhm\n</think>\n\nIt is 3."),
        ("qwen2_5", 'It is {"name": "add"}.'),
        ("qwen2_5", '<tool_call>{"name": "roll"}</tool_call>'),
        ("llama3_1", LLAMA),
        ("llama3_1", '{"name": "roll", "parameters": {}}'),
        ("llama3_1", "It is 3."),
        ("llama3_1", '{"name": "Ada", "age": 36}'),
    ],
)
def test_calls_are_read_as_trl_reads_them(name, text, templates):
    """Oracle: TRL's parse_response of the same ids; its content leaves the thought out."""
    tokenizer = templates[name]
    form, chat = tool_form(tokenizer, "chat"), add_response_schema(tokenizer.chat)
    prompt = form.prompt({"question": "?"}, SCHEMAS)
    ids = [*tokenizer.encode(text), end_of_turn(tokenizer, "chat")]
    wanted = parse_response(chat, ids, prefix=prompt, tools=SCHEMAS)
    content, calls = form.parse(text, SCHEMAS)
    functions = [call["function"] for call in wanted.get("tool_calls", ())]
    assert calls == [Call(f["name"], f["arguments"]) for f in functions]
    assert content.rpartition("</think>")[2].strip() == wanted["content"].strip()
    assert wanted.get("reasoning_content", "") in content


@pytest.mark.parametrize("name", ["hermes", "llama", "deepseek"])
@pytest.mark.parametrize("thought", ["", THOUGHT, "hm</think>"])
def test_what_a_template_writes_is_read_back(name, thought, forms):
    """Oracle: the calls that were written, in test_tools' words of the templates."""
    calls = CALLS[:1] if name == "llama" else [*CALLS, Call("roll", {})]
    text = thought + raw_calls(forms[name], calls)
    assert forms[name].parse(text, SCHEMAS) == (thought.rstrip(), calls)


def test_deepseeks_calls_stand_after_what_is_said(forms):
    """Oracle: by hand; R1-Distill's single call ends without the token that ends all."""
    parse, raw = forms["deepseek"].parse, raw_calls(forms["deepseek"], CALLS[:1])
    assert parse(f"I add.\n{raw}", SCHEMAS) == ("I add.", CALLS[:1])
    short = raw.removesuffix("<｜tool▁calls▁end｜>")
    assert parse(short, SCHEMAS) == ("", CALLS[:1])
    assert parse(short.removeprefix("<｜tool▁calls▁begin｜>"), SCHEMAS) == ("", CALLS[:1])


def test_blanks_around_a_call_of_llama_are_nothing(forms):
    """Oracle: by hand; TRL takes such a turn for text."""
    calls = [Call("add", {"a": 1, "b": -2})]
    for text in (f"\n {LLAMA} \n", f"<|python_tag|>{LLAMA}"):
        assert forms["llama"].parse(text, SCHEMAS) == ("", calls)


def test_v32s_calls(forms):
    """Oracle: by hand, from its format; a thought that does not end calls nothing."""
    parse = forms["deepseek_v32"].parse
    calls = [Call("look_up", {"word": '1"'}), Call("add", {"a": 1, "b": -2})]
    assert parse(f"hm</think>I look.{INVOKED}", SCHEMAS) == ("hm</think>I look.", calls)
    assert parse("still thinking", SCHEMAS) == ("still thinking", [])


@pytest.mark.parametrize(
    "text, content, calls",
    [
        ("add(1, -2)", "", [Call("add", {"a": 1, "b": -2})]),
        ("I add.\n\n  add(1, b=-2)  \n\n", "I add.", [Call("add", {"a": 1, "b": -2})]),
        (
            'Two.\nroll()\n\nlook_up("a)(\\n", language=None)',
            "Two.",
            [Call("roll", {}), Call("look_up", {"word": "a)(\n", "language": None})],
        ),
        (
            "f(2)\nadd([1, (2, 3)], {'x': 1.5})",
            "f(2)",
            [Call("add", {"a": [1, [2, 3]], "b": {"x": 1.5}})],
        ),
        ("add(1) gives\nroll()", "add(1) gives", [Call("roll", {})]),
        (
            "<think>\nadd(1, 2)\n</think>\nroll()",
            "<think>\nadd(1, 2)\n</think>",
            [Call("roll", {})],
        ),
        ("roll()\nIt is 3.", None, []),
        ("The sum is f(2)", None, []),
        ("<think>\nadd(1, 2)", None, []),
        ("", None, []),
    ],
)
def test_plain_calls_are_the_last_lines(text, content, calls, forms):
    """Oracle: by hand; a chat and a template of text read alike."""
    for name in ("plain", "text"):
        assert forms[name].parse(text, SCHEMAS) == (text if content is None else content, calls)


DEEPSEEK = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n"
    "```json\n{}\n```<｜tool▁call▁end｜>"
)
WRONG = [
    ("hermes", HERMES[:-14], "not complete JSON: "),
    ("hermes", HERMES[:-12], "does not end in </tool_call>"),
    (
        "hermes",
        HERMES.replace("add", "sub"),
        "no tool named 'sub'; the tools are: add, look_up, roll.",
    ),
    ("hermes", HERMES.replace('"add"', "7"), "no tool named '7'"),
    ("hermes", HERMES.replace('"b"', '"c"'), "add has no parameter 'c'; its parameters are: a, b."),
    ("hermes", HERMES.replace(', "b": -2', ""), "add needs the parameter 'b'."),
    (
        "hermes",
        HERMES.replace('{"a": 1, "b": -2}', "[1, -2]"),
        "arguments of add must be an object",
    ),
    ("hermes", "<tool_call>[1]</tool_call>", 'a JSON object with "name" and "arguments"'),
    ("hermes", "<tool_call>" + "[" * 100_000, "nested too deeply"),
    (
        "hermes",
        ROLL.replace("{}", '{"x": 1}'),
        "roll has no parameter 'x'; its parameters are: none.",
    ),
    ("llama", LLAMA[:-3], "not complete JSON"),
    ("llama", f"{LLAMA}; {LLAMA}", "one call"),
    ("llama", LLAMA.replace("add", "sub"), "no tool named 'sub'"),
    ("llama", '{"name": "add"}', "add needs the parameter 'a'."),
    ("deepseek", DEEPSEEK.format("add", '{"a": 1'), "not complete JSON"),
    ("deepseek", DEEPSEEK.format("sub", "{}"), "no tool named 'sub'"),
    ("deepseek", DEEPSEEK.format("add", "[]"), "arguments of add must be an object"),
    ("deepseek", DEEPSEEK.format("add", "{}").replace("```json", ""), "A call begins with"),
    ("deepseek", DEEPSEEK.format("roll", "{}")[:-16], "does not end in <｜tool▁call▁end｜>"),
    ("deepseek", "<｜tool▁calls▁begin｜>add(1, 2)", "There is no <｜tool▁call▁begin｜> after"),
    ("deepseek_v32", INVOKED[:-5], "not complete"),
    ("deepseek_v32", INVOKED.replace("look_up", "sub"), "no tool named 'sub'"),
    ("deepseek_v32", INVOKED.replace('"word"', '"w"'), "look_up has no parameter 'w'"),
    ("deepseek_v32", INVOKED.replace(">-2", ">" + "[" * 100_000), "nested too deeply"),
    ("plain", "sub(1, 2)", "no tool named 'sub'"),
    ("plain", "roll()\nsub(1, 2)", "no tool named 'sub'"),
    ("plain", "add(1, 2", "no call of add with literals"),
    ("plain", "add(1, x)", "no call of add with literals"),
    ("plain", "add(1, roll())", "no call of add with literals"),
    ("plain", "add(1, {2})", "no call of add with literals"),
    ("plain", "add(*[1, 2])", "no call of add with literals"),
    ("plain", "add(1, 2)(3)", "no call of add with literals"),
    ("plain", "add(1, b'2')", "no call of add with literals"),
    ("plain", "add(" + "-" * 10_000 + "1, 2)", "no call of add with literals"),
    ("plain", "add(" + "1" * 30_000 + ", 2)", "longer than 20000 characters"),
    ("plain", "add(1, 2, 3)", "add takes 2 arguments, and the call has 3."),
    ("plain", "add(1, a=2)", "the parameter 'a' twice"),
    ("plain", "add(1, **{'b': 2})", "Name each argument of add"),
    ("plain", "add(1, c=2)", "add has no parameter 'c'"),
    ("plain", "add(1)", "add needs the parameter 'b'."),
    ("plain", "add(1)\nroll()", "add needs the parameter 'b'."),
]


@pytest.mark.parametrize("name, text, words", WRONG)
def test_a_malformed_call_says_what_is_wrong(name, text, words, forms):
    """Oracle: the words that a model needs, in under 300 characters; without tools nothing is a call."""
    with pytest.raises(ValueError) as failed:
        forms[name].parse(text, SCHEMAS)
    assert words in str(failed.value) and len(str(failed.value)) < 300
    assert forms[name].parse(text, []) == (text, [])


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud83d"'])
def test_values_that_no_file_can_hold_are_refused(value, forms):
    """Oracle: what json.dumps and UTF-8 refuse; Python's own reader of JSON takes all of them."""
    with pytest.raises(ValueError):
        json.dumps(json.loads(value), allow_nan=False, ensure_ascii=False).encode()
    begin, end = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    )
    given, literal = f'{{"word": {value}}}', value if value.startswith('"') else "1e999"
    texts = {
        "hermes": f'<tool_call>{{"name": "look_up", "arguments": {given}}}</tool_call>',
        "llama": f'{{"name": "look_up", "parameters": {given}}}',
        "deepseek": f"{begin}function<｜tool▁sep｜>look_up\n```json\n{given}\n```{end}",
        "deepseek_v32": INVOKED[: INVOKED.index('<｜DSML｜invoke name="add')].replace(
            'string="true">1"', f'string="false">{value}'
        )
        + "</｜DSML｜function_calls>",
        "text": f"look_up({literal})",
    }
    for name, text in texts.items():
        with pytest.raises(ValueError, match="look_up"):
            forms[name].parse(text, SCHEMAS)


def test_errors_stay_short_with_many_tools_and_long_names(forms):
    """Oracle: 300 characters, the wrong name's beginning among them."""
    many = []
    for i in range(100):
        many.append(json.loads(json.dumps(SCHEMAS[0])))
        many[-1]["function"]["name"] = f"add_{i}"
    texts = {
        "hermes": HERMES.replace("add", "x" * 5000),
        "deepseek_v32": INVOKED.replace("look_up", "x" * 5000),
        "plain": "x" * 5000 + "(1)",
    }
    for name, text in texts.items():
        with pytest.raises(ValueError, match=f"^There is no tool named '{'x' * 40}'") as failed:
            forms[name].parse(text, many)
        assert len(str(failed.value)) < 300


PIECES = (
    *(f"{HERMES} {ROLL} {LLAMA} {INVOKED}".split(" ")),
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        '{"name": "add"',
        '"parameters": {',
        "}",
        "\n",
    ),
    *DEEPSEEK.split("｜"),
    *("｜", "add(", "roll()", "1, 2)", "'", "\\", "**", "\x00", "☃"),
)


@given(text=strategies.lists(strategies.sampled_from(PIECES)).map(" ".join))
@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_model_writes_is_read_or_refused(text, forms):
    """Oracle: a Call has what its tool requires; nothing but a short ValueError is raised."""
    required = {"add": {"a", "b"}, "look_up": {"word"}, "roll": set()}
    for form in forms.values():
        try:
            _, calls = form.parse(text, SCHEMAS)
        except ValueError as error:
            assert 0 < len(str(error)) < 300
        else:
            assert all(required[call.name] <= set(call.arguments) for call in calls)
