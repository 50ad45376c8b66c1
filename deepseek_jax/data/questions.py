"""Questions for a model to answer, from whatever data.records reads.

An example is a dict: question, the last user message; messages, if the prompt is a chat; answer, "" where
none is known; solution, the answer with its working, where the data have it; and every other column of its
line, which rewards, graders and reports read.
"""

from collections.abc import Mapping
from pathlib import Path

from deepseek_jax.data.chat import asked_messages
from deepseek_jax.data.columns import check_names, renamed
from deepseek_jax.data.conversation_forms import check_turns, parse_conversation
from deepseek_jax.data.records import needing, read_records
from deepseek_jax.files import as_path
from deepseek_jax.hub import hub_id

# Between the working and the answer in GSM8K (arXiv:2110.14168)
MARK = "####"
# For messages
LINE = '{"question": "2 + 3?", "answer": "2 + 3 = 5 #### 5"}'
FORM = (
    "question (or prompt), a text or a chat that the user ends, and answer; or messages, the last of which "
    "is the answer"
)
# The columns that may hold the question, the first before the second
ASKED = ("question", "prompt")
# Columns that take the place of an answer: they say by themselves what is right
IN_PLACE = ("test_cases",)


def read_questions(
    path: str | Path, split: str = "train", columns: Mapping[str, str] | None = None
) -> list[dict]:
    """The distinct examples of a path that data.records reads, as a list.

    A record has the columns of FORM. columns: our name -> the column's, where the data have another. Where
    answers have a MARK, an example's answer is the text after the last one, without commas; where no answer
    has one, it is the answer as it stands. Raises ValueError, naming the line, for a record of another
    form, an answer that is missing or has no mark where others have them, and as read_records does.
    """
    examples, answered, marked = [], {}, {}
    with needing(LINE):
        for place, record in read_records(path, split):
            record = renamed(place, record, columns or {})
            example = parse_question(place, record)
            examples.append(example)
            if not any(name in example for name in IN_PLACE):
                answered.setdefault(bool(example["answer"]), place)
            if example["answer"]:
                marked.setdefault(MARK in str(record.get("answer")), place)
    if len(answered) == 2:
        raise ValueError(f"{answered[False]} has no text under 'answer', and {answered[True]} has")
    if len(marked) == 2:
        raise ValueError(
            f"{marked[False]}: the answer has no final '{MARK} <answer>', and that of {marked[True]} has; "
            "mark all answers or none"
        )
    return distinct(examples)


def parse_question(place: str, record: Mapping) -> dict:
    """The example of a record. Raises ValueError, with the place, for one of another form."""
    check_names(place, record)
    # A column that is None counts as absent: files that were merged have such
    asked = next((record[key] for key in ASKED if record.get(key) is not None), None)
    if asked is None and record.get("messages") is not None:
        *chat, reply = parse_conversation(place, record)["messages"]
        own = {"question": chat[-1]["content"], "messages": chat, "answer": reply["content"]}
        return dict(record) | own
    if isinstance(asked, list):
        chat = check_turns(place, asked, last="user")
        example = dict(record) | {"question": chat[-1]["content"], "messages": chat}
    elif isinstance(asked, str) and asked.strip():
        example = {key: value for key, value in record.items() if key != "messages"}
        example["question"] = asked
    else:
        raise ValueError(
            f"{place} has no text under 'question'; its columns are {', '.join(record)}, and a line has "
            f"{FORM}. Name yours by columns={{'question': ..., 'answer': ...}}"
        )
    answer, solution = _answer(place, record.get("answer"))
    # A column of that name stays as it is
    if solution is not None and "solution" not in example:
        example["solution"] = solution
    return example | {"answer": answer}


def _answer(place, given):
    """(the answer, the answer with its working or None) of a record's answer."""
    if given is None:
        return "", None
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str):
        raise ValueError(f"{place} has no text under 'answer': {str(given)[:80]}")
    _, mark, answer = given.rpartition(MARK)
    if not mark:
        return given.strip(), None
    answer = answer.strip().replace(",", "")
    if not answer:
        raise ValueError(f"{place}: the answer has no final '{MARK} <answer>'.")
    return answer, given


def evaluation_texts(name: str):
    """(questions, solutions), lists of str, of an evaluation set; the solutions include their working.

    name: a path of data.records, or one and one of its splits, "FOLDER@test". Of a name on the hub, a single
    @ is before its revision: its split comes after that, "ORG/NAME@REVISION@test".
    """
    path, split = name, "train"
    if "@" in name and hub_id(name) is None and not as_path(name).exists():
        path, _, split = name.rpartition("@")
    examples = read_questions(path, split)
    questions = [example["question"] for example in examples]
    return questions, [example.get("solution", example["answer"]) for example in examples]


def distinct(examples):
    """The examples without those that ask the same as an earlier one, as a list."""
    first = {}
    for example in examples:
        first.setdefault(asked_key(example), example)
    return list(first.values())


def asked_key(example):
    """A hashable key that examples share if they ask the same: all messages before the answer."""
    return tuple((message["role"], message["content"]) for message in asked_messages(example))
