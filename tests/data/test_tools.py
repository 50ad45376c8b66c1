"""Forms of tool calls: prompts and what stands between turns, against conversations that templates render."""

import copy
import dataclasses
import json

import pytest
import transformers

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.chat import R1_ZERO_TEMPLATE, end_of_turn, render_question
from deepseek_jax.data.deepseek_v32 import DeepseekV32Chat, render_messages
from deepseek_jax.data.plain_calls import plain_description
from deepseek_jax.data.tools import Call, tool_form
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.data.conftest import HERMES, with_template
from tests.data.tool_turns import CALLS, SCHEMAS, THOUGHT, raw_calls
from tests.turns import turns

FORMS = {
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "llama3_1": "llama",
    "deepseekv3": "deepseek",
    "deepseek_r1_distill": "deepseek",
    "deepseek": "deepseek",
    "smollm2": "plain",
}
# Blanks that a tokenizer joins with those of the template, quotes that Llama's escapes, and nothing
RESULTS = [["5117", "Japan"], ["\n5117\n\n", ' "a\\n"\t'], ["", "."]]


def calling(calls, *, as_text):
    """The same turn in OpenAI's form."""
    functions = [
        {
            "name": c.name,
            "arguments": json.dumps(c.arguments, ensure_ascii=False) if as_text else c.arguments,
        }
        for c in calls
    ]
    made = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": "", "tool_calls": made}


def results(calls, texts):
    return [
        {"role": "tool", "name": c.name, "content": t} for c, t in zip(calls, texts, strict=True)
    ]


def shown(tokenizer, ids):
    return tokenizer.backend.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name, form", FORMS.items())
def test_a_templates_form_is_recognised(name, form, templates):
    """Oracle: the families that these templates are of."""
    assert tool_form(templates[name], "chat").name == form
    assert tool_form(templates[name], "{question}\n").name == "plain"


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "deepseek"])
@pytest.mark.parametrize("texts", RESULTS)
def test_a_conversation_in_parts_is_the_template_of_the_whole(name, texts, templates):
    """Oracle: transformers' rendering of the whole conversation, with its tools, encoded at once."""
    tokenizer = templates[name]
    form, end = tool_form(tokenizer, "chat"), end_of_turn(tokenizer, "chat")
    calls = CALLS[:1] if form.name == "llama" else CALLS
    texts, asked = texts[: len(calls)], turns("What is 312 + 4805?", system="Be brief.")
    ids = form.prompt({"question": "?", "messages": asked}, SCHEMAS)
    prompt = shown(tokenizer, ids)
    ids += [*tokenizer.encode(raw_calls(form, calls)), end, *form.results(calls, texts)]
    head = len(ids)
    ids += [*tokenizer.encode("It is 5117."), end, *form.user("And 2 + 2?")]

    tools = None if form.name == "deepseek" else SCHEMAS
    if form.name == "deepseek":
        described = prompt.removeprefix("<｜begin▁of▁sentence｜>").partition("<｜User｜>")[0]
        asked = [{"role": "system", "content": described}, asked[1]]
    messages = [*asked, calling(calls, as_text=form.name == "deepseek"), *results(calls, texts)]
    for size, said in (
        (head, messages),
        (len(ids), [*messages, *turns("?", "It is 5117.", "And 2 + 2?")[1:]]),
    ):
        whole = tokenizer.chat.apply_chat_template(said, tools=tools, add_generation_prompt=True)
        assert shown(tokenizer, ids[:size]) == shown(tokenizer, whole["input_ids"])
        assert ids[:size] == whole["input_ids"]


@pytest.mark.parametrize("name", ["deepseekv3", "deepseek_r1_distill", "deepseek"])
def test_results_in_deepseeks_form(name, templates):
    """Oracle: by hand; the templates of V3 and of R1-Distill differ in the line between two results."""
    tokenizer = templates[name]
    form, between = tool_form(tokenizer, "chat"), "\n" if "distill" in name else ""
    one, many = (form.results([CALLS[0]] * n, ["1", "2", "3"][:n]) for n in (1, 3))
    result = "<｜tool▁output▁begin｜>{}<｜tool▁output▁end｜>".format
    begin, end = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
    assert one == tokenizer.encode(begin + result(1) + end)
    assert many == tokenizer.encode(begin + between.join(map(result, (1, 2, 3))) + end)
    think = "" if name == "deepseek" else "<think>\n"
    assert form.user("Hi") == tokenizer.encode(f"<｜User｜>Hi<｜Assistant｜>{think}")


@pytest.mark.parametrize("name", FORMS)
def test_no_marker_in_a_result_becomes_a_token(name, templates):
    """Oracle: the markers among the ids of a harmless result, in order, and the text that is decoded."""
    tokenizer = templates[name]
    form, markers = tool_form(tokenizer, "chat"), set(tokenizer.markers)
    for write in (lambda text: form.results(CALLS[:1], [text]), form.user):
        wanted = [i for i in write("x") if i in markers]
        for marker in {
            m for t in templates.values() for m in t.markers.values() if "place▁holder" not in m
        }:
            for text in (marker, f"</{marker} {marker}>"):
                ids = write(text)
                assert [i for i in ids if i in markers] == wanted
                assert shown(tokenizer, ids) == shown(tokenizer, write("x")).replace(
                    "x", text, 1
                ) or ("x" in shown(tokenizer, write("")))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("template", ["chat", "Q: {question}\nA: "])
def test_no_marker_of_a_question_becomes_a_token(name, template, templates):
    """Oracle: the markers among the ids of a harmless question, in order, and the text that is decoded."""
    tokenizer, said = templates[name], turns("31\u2603", "5", "31\u2603", system="Be brief.")
    if template != "chat":
        said = said[1:]
    form = tool_form(tokenizer, template)
    for messages in (said, said[-1:]):
        harmless = form.prompt({"messages": messages, "question": "?"}, SCHEMAS)
        wanted = [i for i in harmless if i in tokenizer.markers]
        for text in {
            m for t in templates.values() for m in t.markers.values() if "▁holder" not in m
        }:
            asked = [m | {"content": m["content"].replace("31\u2603", text)} for m in messages]
            ids = form.prompt({"messages": asked, "question": "?"}, SCHEMAS)
            assert [i for i in ids if i in tokenizer.markers] == wanted
            assert shown(tokenizer, ids) == shown(tokenizer, harmless).replace("31\u2603", text)


def test_tools_are_described_as_the_template_does(templates):
    """Oracle: transformers' rendering; without tools, and after an earlier answer, render_question's."""
    example = {"question": "2 + 3?"}
    for name in ("qwen2_5", "qwen3", "llama3_1"):
        tokenizer = templates[name]
        form = tool_form(tokenizer, "chat")
        for tools, asked in (
            (SCHEMAS, turns("2 + 3?")),
            (SCHEMAS, turns("a", "b", "c", system="S")),
        ):
            ids = form.prompt({"question": "2 + 3?", "messages": asked}, tools)
            rendered = tokenizer.chat.apply_chat_template(
                asked, tools=tools, add_generation_prompt=True
            )
            assert ids == rendered["input_ids"]
        plain = render_question(tokenizer, example, template="chat", opening="<think>")
        assert form.prompt(example, [], "<think>") == plain


@pytest.mark.parametrize("name", ["deepseek", "deepseek_r1_distill", "smollm2"])
def test_templates_without_tools_have_them_in_the_system_message(name, templates):
    """Oracle: transformers' rendering of a system message by hand, and the words that a model needs."""
    tokenizer, line = templates[name], "Reasoning Effort: 75\n"
    form = tool_form(tokenizer, "chat")
    example = {"messages": turns("2 + 3?", system="Be brief."), "question": "2 + 3?", "line": line}
    text = shown(tokenizer, form.prompt(example, SCHEMAS))
    head, description = text.split("Be brief.\n\n")
    description = description.split("<｜User｜>")[0].split("<|im_end|>")[0]
    described = turns("2 + 3?", system=f"{line}Be brief.\n\n{description}")
    whole = tokenizer.chat.apply_chat_template(described, add_generation_prompt=True)["input_ids"]
    assert text == shown(tokenizer, whole) and head.endswith(line)
    words = ["add", "look_up", "roll", "Add two numbers.", "Its language."]
    form_words = ["add(a: int, b: int)", "language: str = ...", '["en", "zh"]']
    if form.name == "deepseek":
        form_words = [raw_calls(form, [Call("NAME", {"PARAMETER": 0})]).replace("0", "VALUE")]
    assert all(word in description for word in words + form_words)
    assert shown(tokenizer, form.prompt({"question": "2 + 3?"}, SCHEMAS)).count("2 + 3?") == 1


def look(word: str, depth: int | None = None, weights: list[float] = (), mode: int | str = 1):
    """
    Look a word up.

    Args:
        word: The word,
            as it is written.
        depth: How deep.
        weights: Their weights.
        mode: Its mode. (choices: [1, "all"])
    """


def test_a_plain_description_is_a_python_signature():
    """Oracle: by hand, from the schema that transformers makes of a function."""
    described = plain_description([transformers.utils.get_json_schema(look)])
    assert described.startswith(
        "You can call these tools:\n\n"
        "look(word: str, depth: int = ..., weights: list = ..., mode: int | str = ...)\n"
        "    Look a word up.\n"
        "    word: The word, as it is written.\n"
        "    depth: How deep.\n"
        "    weights: Their weights.\n"
        '    mode: Its mode. One of [1, "all"].\n\n'
        "To call a tool, end your answer with a line that holds the call"
    )


@pytest.fixture(scope="module")
def v32(deepseek):
    return dataclasses.replace(deepseek, chat=DeepseekV32Chat(deepseek.backend))


def test_v32_is_rendered_as_its_own_encoder_does(v32):
    """Oracle: data.deepseek_v32.render_messages of the whole, with a thought before each answer."""
    form = tool_form(v32, "chat")
    assert form.name == "deepseek_v32"
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        asked = [*system, *turns("2 + 3?")]
        told = [
            {"role": "system", "content": "", **(system or [{}])[0], "tools": SCHEMAS},
            asked[-1],
        ]
        turn = calling(CALLS, as_text=True) | {"reasoning_content": "hm"}
        messages = [*told, turn, *results(CALLS, RESULTS[1])]
        raw = render_messages([*told, turn], thinking=True).split("<think>")[-1]
        ids = form.prompt({"messages": asked, "question": "2 + 3?"}, SCHEMAS)
        ids += v32.encode(raw) + form.results(CALLS, RESULTS[1])
        assert ids == v32.encode(render_messages(messages, thinking=True))
    assert form.user("Hi") == v32.encode("<｜User｜>Hi<｜Assistant｜><think>")


def test_a_template_of_text_asks_results_anew():
    """Oracle: by hand, in bytes, with a bos that stands at the start alone."""
    tokenizer = dataclasses.replace(byte_tokenizer(), bos_id=258)
    form = tool_form(tokenizer, "Q: {question}\nA: ")
    example = {"question": "1+1?"}
    assert form.prompt(example, SCHEMAS) == [258, *b"Q: 1+1?\nA: "]
    assert bytes(form.results(CALLS, ["3", "<eos>"])).decode() == "Q: 3\n<eos>\nA: "
    assert bytes(form.user("{question}")).decode() == "Q: {question}\nA: "
    assert bytes(tool_form(tokenizer, "r1_zero").user("Hi")).decode() == (
        R1_ZERO_TEMPLATE.replace("{question}", "Hi")
    )
    world = arithmetic_tokenizer()
    assert tool_form(world, "Q{question}?\n1, ").user("E 12") == world.encode("12?\n1, ")


def test_a_plain_chat_has_the_results_in_a_message_of_the_user(smollm2):
    """Oracle: transformers' rendering of the calls as text and the results as lines."""
    form = tool_form(smollm2, "chat")
    raw = "add(1, 2)\nroll()"
    ids = form.prompt({"question": "Hi"}, []) + [*smollm2.encode(raw), smollm2.eos_id]
    ids += form.results([Call("add", {"a": 1, "b": 2}), Call("roll", {})], ["3", "6"])
    messages = turns("Hi", raw, "3\n6")
    assert (
        ids == smollm2.chat.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    )


def conversation(form, thought):
    """(messages, raw texts): a question that is answered after a call, and another one."""
    call = calling(CALLS[:1], as_text=False)
    messages = [
        *turns("312 + 4805?"),
        call | {"content": thought},
        *results(CALLS[:1], ["5117"]),
        {"role": "assistant", "content": f"{thought}It is 5117."},
        *turns("Sure?", f"{thought}Yes."),
    ]
    return messages, [
        thought + raw_calls(form, CALLS[:1]),
        f"{thought}It is 5117.",
        f"{thought}Yes.",
    ]


@pytest.mark.parametrize(
    "name, thought, wanted",
    [
        # Keeps what is said
        ("qwen2_5", "", 0),
        ("llama3_1", "", 0),
        ("deepseek", "", 0),
        ("qwen3", "", 0),
        # Drops both thoughts before the last question; the last turn is not an earlier one
        ("qwen3", THOUGHT, 2),
        # Keeps the thoughts of a call and of the answer after it
        ("deepseek", THOUGHT, 0),
        # Drops the call
        ("deepseek_r1_distill", "", 1),
    ],
)
def test_turns_that_a_template_would_have_written_otherwise_are_counted(
    name, thought, wanted, templates
):
    """Oracle: by hand from the templates."""
    form = tool_form(templates[name], "chat")
    messages, texts = conversation(form, thought)
    assert form.rewritten(messages, texts) == wanted
    # Nothing but the prompt and one turn; and a call whose result is the last that was said
    assert form.rewritten(messages[:2], texts[:1]) == 0
    assert form.rewritten(messages[:1], []) == 0
    # Within the first question Qwen3 keeps the thoughts
    cut = form.rewritten(messages[:3], texts[:1])
    assert cut == (name == "deepseek_r1_distill")


@pytest.mark.parametrize(
    "name, wanted", [("deepseek", 1), ("deepseek_r1_distill", 1), ("qwen3", 1), ("smollm2", 0)]
)
def test_an_earlier_thought_without_calls_is_counted(name, wanted, templates):
    """Oracle: by hand: R1's and Qwen3's templates drop it."""
    form, raw = tool_form(templates[name], "chat"), [f"{THOUGHT}b", f"{THOUGHT}d"]
    assert form.rewritten(turns("a", raw[0], "c", raw[1]), raw) == wanted
    assert form.rewritten(turns("a", raw[0], "c"), raw[:1]) == wanted


def test_json_that_a_template_spaces_otherwise_is_counted(templates):
    """Oracle: by hand: the same call, with another space."""
    form = tool_form(templates["qwen2_5"], "chat")
    messages, texts = conversation(form, "")
    texts[0] = texts[0].replace('"a": 312', '"a":312')
    assert form.rewritten(messages, texts) == 1


def test_an_earlier_answer_of_the_prompt_is_no_turn_of_the_model(templates):
    """Oracle: by hand: the prompt's own answer has a thought that Qwen3 drops, and is not counted."""
    form = tool_form(templates["qwen3"], "chat")
    messages = turns("a", f"{THOUGHT}b", "c", "d", "e")
    assert form.rewritten(messages, ["d"]) == 0
    assert form.rewritten(messages, [f"{THOUGHT}b", "d"]) == 1


def test_rewriting_in_v32_and_in_the_plain_form(v32, smollm2):
    """Oracle: by hand: V3.2 keeps the thought of the last question alone, SmolLM2 all that was said."""
    form = tool_form(v32, "chat")
    messages, _ = conversation(form, "hm</think>")
    texts = []
    for size in (2, 4, 6):
        asked = [
            m | {"reasoning_content": "hm"} if m["role"] == "assistant" else m for m in messages
        ]
        asked = [m | {"content": m["content"].removeprefix("hm</think>")} for m in asked[:size]]
        if size == 2:
            asked[1] = calling(CALLS[:1], as_text=True) | {"reasoning_content": "hm"}
        if size == 4:
            asked[1] = calling(CALLS[:1], as_text=True)
        if size == 6:
            asked = [asked[0], *asked[4:]]
        whole = render_messages(asked, thinking=True)
        texts.append(whole.split("<think>")[-1].removesuffix("<｜end▁of▁sentence｜>"))
    assert form.rewritten(messages[:4], texts[:2]) == 0
    assert form.rewritten(messages, texts) == 2
    form = tool_form(smollm2, "chat")
    messages, _ = conversation(form, "")
    assert form.rewritten(messages, ["so\nadd(312, 4805)", "It is 5117.", "Yes."]) == 0
    assert tool_form(smollm2, "{question}\n").rewritten(messages, ["a", "b", "c"]) == 0


def changed(tokenizer, template):
    chat = copy.copy(tokenizer.chat)
    chat.chat_template = template
    return dataclasses.replace(tokenizer, chat=chat)


LOOP = (
    "{% for m in messages MATCH %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_a_template_that_cannot_hold_a_conversation_is_refused(smollm2):
    """Oracle: the words a reader needs."""
    first = LOOP.replace("MATCH", "[:2]") + ASK
    with pytest.raises(
        ValueError, match="^template='chat': .* leaves out what a tool or a user says"
    ):
        tool_form(changed(smollm2, first), "chat")
    dumb = tool_form(
        changed(smollm2, LOOP.replace("MATCH", " if m.role != 'system'") + ASK), "chat"
    )
    assert dumb.prompt({"question": "Hi"}, [])
    with pytest.raises(ValueError, match="^template='chat': .*leaves out the system message"):
        dumb.prompt({"question": "Hi"}, SCHEMAS)
    with pytest.raises(
        ValueError, match="^template='chat', but this tokenizer has no chat template"
    ):
        tool_form(byte_tokenizer(), "chat")


def test_markers_that_decoding_drops_are_refused(smollm2):
    """Oracle: the words a reader needs."""
    special = with_template(smollm2, "qwen3", special=HERMES)
    with pytest.raises(ValueError, match="leaves <tool_call> out of decoded text.*added_tokens"):
        tool_form(special, "chat")
