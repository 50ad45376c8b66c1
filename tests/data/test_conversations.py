"""Rendered conversations and their targets, against chat templates and hand-written texts; packed rows."""

import copy
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.chat import R1_ZERO_TEMPLATE, render_prompt
from deepseek_jax.data.conversations import (
    end_of_turn,
    last_prompt,
    pack_conversations,
    render_conversation,
)
from tests.turns import turns

BYTES = byte_tokenizer()
QUESTION = "{question}\n"
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
    return replace(tokenizer, chat=chat)


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
        tokenizer = replace(BYTES, bos_id=bos_id)
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


def make_source(n, seed=0):
    """Conversations of one to three turns, of bytes, no two alike, with weights that float32 adds exactly."""
    rng = np.random.default_rng(seed)
    return [
        {
            "messages": turns(
                *(f"{k}.{i}" + "x" * rng.integers(9) for i in range(2 * (1 + k % 3)))
            ),
            "weight": (0.5, 1.0, 2.0)[k % 3],
        }
        for k in range(n)
    ]


def read_segments(batch):
    """(ids, what each id counts as a target) of every segment of every row."""
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            (at,) = np.nonzero(batch["segment_ids"][row] == segment)
            assert np.array_equal(batch["positions"][row, at], np.arange(len(at)))
            assert np.array_equal(at, at[0] + np.arange(len(at)))
            weights = batch["loss_weights"][row, at]
            mask = batch["loss_mask"][row, at]
            ahead = batch["targets"][row, at]
            ids = batch["tokens"][row, at]
            assert np.array_equal(mask, weights > 0) and not mask[-1]
            assert np.array_equal(ahead[mask], np.roll(ids, -1)[mask])
            yield tuple(ids.tolist()), (0.0, *weights[:-1].tolist())


SETTINGS = dict(template=QUESTION, sequence_length=64, batch_size=4, seed=0)


@pytest.mark.parametrize("packing", [True, False])
def test_each_conversation_is_a_whole_segment_with_its_weight_on_the_assistants_tokens(packing):
    """Oracle: render_conversation, counted over an epoch; the normalizer is the sum over a batch."""
    source = make_source(150)
    wanted = Counter()
    for record in source:
        ids, is_target = render_conversation(BYTES, record["messages"], template=QUESTION)
        if len(ids) <= 64:
            wanted[tuple(ids), tuple(record["weight"] * target for target in is_target)] += 1
    assert 100 < len(wanted) < 150  # some are too long
    seen, batches = Counter(), 0
    for batch in pack_conversations(source, BYTES, num_epochs=1, packing=packing, **SETTINGS):
        seen.update(read_segments(batch))
        batches += 1
        assert batch["normalizer"] == batch["loss_weights"].sum() > 0
        assert batch["tokens"].shape == (4, 64) and batch["loss_weights"].dtype == np.float32
        assert batch["num_tokens"] == (batch["segment_ids"] > 0).sum()
    assert seen == wanted
    assert batches < len(wanted) / 4 if packing else batches == -(-len(wanted) // 4)


def test_a_resumed_iterator_goes_on_where_it_was():
    """Oracle: the uninterrupted run, across epochs."""
    iterator = iter(pack_conversations(make_source(40), BYTES, **SETTINGS))
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    wanted = [next(iterator) for _ in range(5)]
    resumed = iter(pack_conversations(make_source(40), BYTES, **SETTINGS))
    resumed.set_state(state)
    for batch in wanted:
        again = next(resumed)
        assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_two_processes_share_the_conversations():
    """Oracle: one process: two together read the same conversations, in half of the rows each."""
    settings = SETTINGS | {"num_epochs": 1}
    source = make_source(60)

    def ids(**share):
        batches = pack_conversations(source, BYTES, **settings, **share)
        return [ids for batch in batches for ids, _ in read_segments(batch)]

    halves = [ids(process_index=i, process_count=2) for i in range(2)]
    assert min(map(len, halves)) > 0
    assert sorted(halves[0] + halves[1]) == sorted(ids())


def test_a_conversation_that_cannot_be_rendered_is_named():
    """Oracle: its number and the reason."""
    source = [{"messages": turns("a", "b", system="s"), "weight": 1.0}]
    with pytest.raises(ValueError, match="conversation 0 of the data: .*no place for a system"):
        next(iter(pack_conversations(source, BYTES, **SETTINGS)))
