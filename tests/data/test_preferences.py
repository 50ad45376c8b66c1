"""Pairs and labelled responses: read, split and rendered."""

import json

import pytest

from deepseek_jax.data.preferences import parse_preference, read_preferences

PAIR = {"prompt": "What is 2?", "chosen": "two", "rejected": "three"}
LABELLED = {"prompt": "What is 2?", "response": "two", "safe": True}
SAID = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "What is 2?"},
]
REPLY = {"role": "assistant", "content": "two"}


def test_records_of_both_kinds_are_read():
    """Oracle: by hand, for a prompt and for the messages before a response."""
    question = [{"role": "user", "content": "What is 2?"}]
    pair = parse_preference("helpfulness", "line 1", PAIR | {"weight": 2})
    assert pair == {"messages": question, "responses": ["two", "three"], "weight": 2.0}
    labelled = parse_preference("safety", "line 1", LABELLED)
    assert labelled == {"messages": question, "responses": ["two"], "weight": 1.0, "safe": True}
    talk = {"messages": SAID, "chosen": "two", "rejected": "three"}
    assert parse_preference("helpfulness", "line 1", talk)["messages"] == SAID
    assert parse_preference("helpfulness", "line 1", talk | {"prompt": None})["messages"] == SAID
    assert len(SAID) == 3


def test_responses_that_are_chats_end_in_the_response():
    """Oracle: by hand: a chat with its prompt, one without, and prompts that chats repeat,
    one with a field more."""
    asked = [{"role": "user", "content": PAIR["prompt"]}]
    other = [REPLY | {"content": "three"}]
    wanted = {"messages": asked, "responses": ["two", "three"], "weight": 1.0}
    for record in (
        {"chosen": [*asked, REPLY], "rejected": [*asked, *other]},
        {"prompt": asked, "chosen": [REPLY], "rejected": other},
        {"prompt": PAIR["prompt"], "chosen": [*asked, REPLY], "rejected": [*asked, *other]},
        {
            "prompt": [asked[0] | {"name": None}],
            "chosen": [asked[0] | {"name": None}, REPLY],
            "rejected": [*asked, *other],
        },
    ):
        assert parse_preference("helpfulness", "line 1", record) == wanted


@pytest.mark.parametrize(
    "kind, record, wrong",
    [
        ("helpfulness", {"chosen": "a", "rejected": "b"}, "has no prompt; a line has prompt"),
        ("helpfulness", PAIR | {"rejected": " "}, "rejected has no text"),
        ("helpfulness", PAIR | {"rejected": [*SAID, *SAID[:1]]}, "rejected has the roles"),
        ("helpfulness", PAIR | {"chosen": [*SAID, REPLY]}, "before 'chosen' are not its prompt"),
        ("helpfulness", PAIR | {"rejected": "two"}, "over itself"),
        ("helpfulness", PAIR | {"weight": 0}, "weight=0"),
        ("helpfulness", PAIR | {"prompt": 3}, "has no prompt"),
        ("helpfulness", {"messages": 3, "chosen": "a", "rejected": "b"}, "has no prompt"),
        ("safety", LABELLED | {"safe": 1}, "safe=1"),
        ("safety", PAIR, "has no 'response'; its columns are prompt, chosen, rejected"),
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
