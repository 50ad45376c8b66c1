"""The forms in which data sets write conversations: what is learned of each is the assistant's part alone."""

import json

import numpy as np
import pytest

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.conversation_forms import as_conversation
from deepseek_jax.data.conversations import weighed_tokens
from deepseek_jax.data.messages import read_conversations
from tests.turns import turns

BYTES = byte_tokenizer()
TEMPLATE = "Q: {question}\nA: "
# What each record learns, and the whole of its row, by hand; ; stands for the end of a text
ONE_TURN = "Q: 2 + 3?\nA: 5;"
FORMS = {
    "messages": ({"messages": turns("2 + 3?", "5")}, ["5;"], ONE_TURN),
    "messages of two turns": (
        {"messages": turns("Hi", "Yes?", "2 + 3?", "5")},
        ["Yes?;", "5;"],
        "Q: Hi\nA: Yes?;" + ONE_TURN,
    ),
    "prompt and completion": ({"prompt": "2 + 3?", "completion": "5"}, ["5;"], ONE_TURN),
    "prompt and completion as chats": (
        {"prompt": turns("2 + 3?"), "completion": [{"role": "assistant", "content": "5"}]},
        ["5;"],
        ONE_TURN,
    ),
    "text": ({"text": "2 + 3 is 5."}, ["2 + 3 is 5.;"], "2 + 3 is 5.;"),
    "Alpaca": (
        {"instruction": "Add.", "input": "2 and 3", "output": "5"},
        ["5;"],
        "Q: Add.\n\n2 and 3\nA: 5;",
    ),
    "Alpaca without input": (
        {"instruction": "Add 2 and 3.", "input": "", "output": "5"},
        ["5;"],
        "Q: Add 2 and 3.\nA: 5;",
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]},
        ["5;"],
        ONE_TURN,
    ),
}


def shown(ids):
    """The text of ids, with ; for the end of a text."""
    return BYTES.decode(ids) if BYTES.eos_id not in ids else ";".join(map(BYTES.decode, split(ids)))


def split(ids):
    """The ids between the ends of texts."""
    parts = [[]]
    for token in ids:
        if token == BYTES.eos_id:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def runs(ids, mask):
    """The texts of the ids within each run of the mask."""
    edges = np.flatnonzero(np.diff(np.pad(mask.astype(int), 1)))
    return [shown(ids[start:end].tolist()) for start, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_learns_the_assistants_part_alone(form, tmp_path):
    """Oracle: the texts by hand, as a file is read, stored, read again and rendered."""
    record, learned, row = FORMS[form]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(record | {"weight": 2.0, "origin": "here"}))
    found = read_conversations(path, tmp_path / "data")[0]
    assert set(found) == {"messages", "weight", "origin"}
    tokens = weighed_tokens(BYTES, found, 0, template=TEMPLATE)
    ids, weights = tokens["tokens"], tokens["weights"]
    assert shown(ids.tolist()) == row
    assert runs(ids, weights > 0) == learned and set(weights.tolist()) <= {0.0, 2.0}


def test_columns_that_are_none_count_as_absent():
    """Oracle: by hand: files of two forms, merged into one table."""
    merged = {"messages": None, "prompt": "2 + 3?", "completion": "5", "text": None, "id": None}
    wanted = {"messages": turns("2 + 3?", "5"), "weight": 1.0, "text": None, "id": None}
    assert as_conversation("here", merged) == wanted


def test_other_names_of_columns_are_given(tmp_path):
    """Oracle: by hand."""
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"q": "2 + 3?", "a": "5"}))
    source = read_conversations(path, tmp_path / "d", columns={"prompt": "q", "completion": "a"})
    assert source[0]["messages"] == turns("2 + 3?", "5")


@pytest.mark.parametrize(
    "record, words",
    [
        (
            {"question": "2?", "answer": "2"},
            "its columns are question, answer, and a line has mess",
        ),
        ({"prompt": "2?", "completion": " "}, "message 2 has no text under 'content'"),
        ({"prompt": turns("2?"), "completion": turns("3?")}, "has the roles user, user;"),
        ({"instruction": "Add.", "output": 5}, "message 2 has no text under 'content'"),
        ({"conversations": "Hi"}, "has no list of from and value under 'conversations'"),
        ({"conversations": [{"from": "tool", "value": "1"}]}, "has from='tool'; allowed: human"),
        ({"text": ""}, "message 1 has no text under 'content'"),
    ],
)
def test_what_is_none_of_them_is_named_with_its_columns_and_the_forms(record, words):
    """Oracle: the message."""
    with pytest.raises(ValueError) as error:
        as_conversation("here", record)
    assert str(error.value).startswith("here") and words in str(error.value)
