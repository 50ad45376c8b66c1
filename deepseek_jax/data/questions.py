"""Questions for a model to answer, from any data that data.records reads.

An example is a dict with these fields:

- question: the last message of the user.
- messages: the whole prompt, if it is a chat.
- answer: the answer, "" if it is not known.
- solution: the answer with its working, if the data have it.
- every other column of its line. Rewards, graders and reports read these.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from deepseek_jax.data.chat import asked_messages
from deepseek_jax.data.columns import check_names, renamed
from deepseek_jax.data.conversation_forms import check_turns, parse_conversation
from deepseek_jax.data.records import needing, read_records
from deepseek_jax.files import as_path
from deepseek_jax.hub import hub_id

# Between the working and the answer in GSM8K (arXiv:2110.14168)
MARK = "####"
# Example line for error messages
LINE = '{"question": "2 + 3?", "answer": "2 + 3 = 5 #### 5"}'
FORM = (
    "question (or prompt), a text or a chat that the user ends, and answer; or messages, the last of which "
    "is the answer"
)
# The columns that may hold the question; the first one that a record has is used
ASKED = ("question", "prompt")
# A record with such a column needs no answer: the column decides what is right
IN_PLACE = ("test_cases",)


def read_questions(
    path: str | Path, split: str = "train", columns: Mapping[str, str] | None = None
) -> list[dict]:
    """Read the distinct examples of a path that data.records reads.

    If answers contain a MARK, the answer of an example is the text after the last MARK, without
    commas. If no answer contains one, the whole text is the answer.

    Args:
        path: A path of data.records; its records have the columns of FORM.
        split: The split to read.
        columns: Our name -> the name of the column in the data, where they differ.

    Returns:
        A list of examples. Of examples that ask the same, only the first is in it.

    Raises:
        ValueError: As `read_records` does. Also for a record of another form, and for an answer
            that is missing or has no mark while others have one; the message names the line.
    """
    examples = []
    answer_places: dict[bool, str] = {}
    mark_places: dict[bool, str] = {}
    with needing(LINE):
        for place, record in read_records(path, split):
            record = renamed(place, record, columns or {})
            example = parse_question(place, record)
            examples.append(example)
            if all(example.get(name) is None for name in IN_PLACE):
                answer_places.setdefault(bool(example["answer"]), place)
            if example["answer"]:
                mark_places.setdefault(MARK in str(record.get("answer")), place)
    if len(answer_places) == 2:
        raise ValueError(
            f"{answer_places[False]} has no text under 'answer', and {answer_places[True]} has"
        )
    if len(mark_places) == 2:
        raise ValueError(
            f"{mark_places[False]}: the answer has no final '{MARK} <answer>', and that of "
            f"{mark_places[True]} has; mark all answers or none"
        )
    return distinct(examples)


def parse_question(place: str, record: Mapping) -> dict:
    """Return the example of a record.

    Raises:
        ValueError: The record has another form; the message has its place.
    """
    check_names(place, record)
    # A column that is None counts as absent: files merged from several forms have such columns
    question = next((record[key] for key in ASKED if record.get(key) is not None), None)
    if question is None and record.get("messages") is not None:
        *chat, reply = parse_conversation(place, record)["messages"]
        fields = {"question": chat[-1]["content"], "messages": chat, "answer": reply["content"]}
        return dict(record) | fields
    if isinstance(question, list):
        chat = check_turns(place, question, last="user")
        example = dict(record) | {"question": chat[-1]["content"], "messages": chat}
    elif isinstance(question, str) and question.strip():
        example = {key: value for key, value in record.items() if key != "messages"}
        example["question"] = question
    else:
        raise ValueError(
            f"{place} has no text under 'question'; its columns are {', '.join(record)}, and a line has "
            f"{FORM}. Name yours by columns={{'question': ..., 'answer': ...}}"
        )
    answer, solution = _answer(place, record.get("answer"))
    # If the record has such a solution, it stays as it is
    if solution is not None and example.get("solution") is None:
        example["solution"] = solution
    return example | {"answer": answer}


def _answer(place, raw_answer):
    """Return (answer, answer with its working or None) for the answer in a record."""
    if raw_answer is None:
        return "", None
    if isinstance(raw_answer, (int, float)) and not isinstance(raw_answer, bool):
        raw_answer = str(raw_answer)
    if not isinstance(raw_answer, str):
        raise ValueError(f"{place} has no text under 'answer': {str(raw_answer)[:80]}")
    _, mark, answer = raw_answer.rpartition(MARK)
    if not mark:
        return raw_answer.strip(), None
    answer = answer.strip().replace(",", "")
    if not answer:
        raise ValueError(f"{place}: the answer has no final '{MARK} <answer>'.")
    return answer, raw_answer


def evaluation_texts(name: str) -> tuple[list[str], list[str]]:
    """Return (questions, solutions) of an evaluation set.

    A solution includes its working, if the data have it.

    Args:
        name: A path of data.records, or a path and one of its splits: "FOLDER@test". In a name on
            the hub a single @ comes before the revision, and the split comes after a second one:
            "ORG/NAME@REVISION@test".
    """
    path, split = name, "train"
    if "@" in name and hub_id(name) is None and not as_path(name).exists():
        path, _, split = name.rpartition("@")
    examples = read_questions(path, split)
    return [example["question"] for example in examples], [solution_of(e) for e in examples]


def solution_of(example: Mapping) -> str:
    """Return an example's answer with its working, or just the answer if the data have no working."""
    # A column that is None counts as absent
    solution = example.get("solution")
    return example["answer"] if solution is None else solution


def distinct(examples: Iterable[dict]) -> list[dict]:
    """Return the examples without those that ask the same as an earlier one."""
    example_by_key: dict[tuple, dict] = {}
    for example in examples:
        example_by_key.setdefault(asked_key(example), example)
    return list(example_by_key.values())


def asked_key(example: Mapping) -> tuple[tuple[str, str], ...]:
    """Return a key that is equal for examples that ask the same.

    It covers all messages before the answer.
    """
    return tuple((message["role"], message["content"]) for message in asked_messages(example))
