"""Pairs and labelled responses: read, split and rendered."""

import json

import pytest

from deepseek_jax.data.preferences import (
    RESPONSES,
    parse_preference,
    read_preferences,
)

PAIR = {"prompt": "What is 2?", "chosen": "two", "rejected": "three"}
LABELLED = {"prompt": "What is 2?", "response": "two", "safe": True}
SAID = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "What is 2?"},
]


def test_records_of_both_kinds_are_read():
    """Oracle: by hand, for a prompt and for the messages before a response."""
    question = [{"role": "user", "content": "What is 2?"}]
    pair = parse_preference("helpfulness", "line 1", PAIR | {"weight": 2})
    assert pair == {"messages": question, "responses": ["two", "three"], "weight": 2.0}
    labelled = parse_preference("safety", "line 1", LABELLED)
    assert labelled == {"messages": question, "responses": ["two"], "weight": 1.0, "safe": True}
    talk = {"messages": SAID, "chosen": "two", "rejected": "three"}
    assert parse_preference("helpfulness", "line 1", talk)["messages"] == SAID
    assert len(SAID) == 3


@pytest.mark.parametrize(
    "kind, record, wrong",
    [
        ("helpfulness", PAIR | {"messages": SAID}, "either 'prompt' or 'messages'"),
        ("helpfulness", {"chosen": "a", "rejected": "b"}, "either 'prompt' or 'messages'"),
        ("helpfulness", PAIR | {"rejected": " "}, "no text under 'rejected'"),
        ("helpfulness", PAIR | {"rejected": "two"}, "over itself"),
        ("helpfulness", PAIR | {"weight": 0}, "weight=0"),
        ("helpfulness", PAIR | {"prompt": 3}, "no text under 'content'"),
        ("safety", LABELLED | {"safe": 1}, "safe=1"),
        ("safety", PAIR, "no text under 'response'"),
        ("safety", {"messages": SAID[:2], "response": "a", "safe": True}, "take turns"),
    ],
)
def test_what_is_no_record_is_refused_by_its_place(kind, record, wrong):
    """Oracle: by hand."""
    with pytest.raises(ValueError, match=f"pairs.jsonl, line 7.*{wrong}"):
        parse_preference(kind, "pairs.jsonl, line 7", record)


def test_a_prompt_is_on_one_side_alone(tmp_path):
    """Oracle: sets of the prompts on both sides, and all records by count."""
    path = tmp_path / "pairs.jsonl"
    records = [PAIR | {"prompt": f"What is {i // 3}?", "chosen": f"c{i}"} for i in range(30)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    train, held_out = read_preferences("helpfulness", str(path), 5, seed=0)
    assert len(held_out) == 6 and len(train) == 24
    prompts = [{r["messages"][0]["content"] for r in side} for side in (train, held_out)]
    assert not prompts[0] & prompts[1]
    assert read_preferences("helpfulness", str(path), 5, seed=1)[1] != held_out
    with pytest.raises(ValueError, match="^num_held_out=30"):
        read_preferences("helpfulness", str(path), 30, seed=0)


@pytest.mark.parametrize("kind", RESPONSES)
def test_a_missing_file_is_refused_with_a_line_that_can_be_read(kind, tmp_path):
    """Oracle: the parser, which takes the example that the message ends in."""
    with pytest.raises(ValueError, match="^path='.*absent.jsonl' is not a file") as error:
        read_preferences(kind, tmp_path / "absent.jsonl", 5, seed=0)
    line = str(error.value).partition("lines such as ")[2]
    assert parse_preference(kind, "example", json.loads(line))["responses"][0] == "5"
