"""Training data of reward models: pairs of responses, and responses labelled safe or unsafe."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from deepseek_jax.data.chat import render_response
from deepseek_jax.data.columns import renamed
from deepseek_jax.data.conversation_forms import check_turns, parse_conversation
from deepseek_jax.data.records import needing, read_records
from deepseek_jax.data.settings import OwnData, as_own
from deepseek_jax.data.tokenizer import Tokenizer

# Kind of record -> the fields that hold its responses, the better one first
RewardKind = Literal["helpfulness", "safety"]
RESPONSES: dict[RewardKind, tuple[str, ...]] = {
    "helpfulness": ("chosen", "rejected"),
    "safety": ("response",),
}
LINES: dict[RewardKind, str] = {
    "helpfulness": '{"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}',
    "safety": '{"prompt": "2 + 3?", "response": "5", "safe": true}',
}
# The columns of a record, for error messages
FORMS: dict[RewardKind, str] = {
    "helpfulness": "prompt, chosen and rejected (texts, or lists of messages)",
    "safety": "prompt, response and safe, a bool",
}


def parse_preference(kind: RewardKind, place: str, record: Mapping) -> dict:
    """Check a record of a reward model's data and return it in one form.

    Args:
        kind: "helpfulness" for a pair of responses, "safety" for a labelled response.
        place: Where the record is, for error messages.
        record: prompt (or messages), a text, or a chat that ends with a message of the user; chosen
            and rejected, or response and safe; optionally weight. A response is a text, or a list
            of messages that ends with it. Messages before it are the prompt, or must repeat it.

    Returns:
        A dict: messages, the messages before the response; responses, a list of str, the better one
        first; weight, a float; and for "safety" also safe, a bool.

    Raises:
        ValueError: The record has another form, or both responses of a pair are equal; the message
            has its place.
    """
    names = (name for name in ("prompt", "messages") if record.get(name) is not None)
    prompt_messages = record.get(next(names, None))
    if isinstance(prompt_messages, str):
        prompt_messages = [{"role": "user", "content": prompt_messages}]
    elif isinstance(prompt_messages, list) and prompt_messages:
        # Role and content only, as in the messages before a response, which may repeat the prompt
        prompt_messages = check_turns(f"{place}, prompt", prompt_messages, last="user")
    responses = []
    for field in RESPONSES[kind]:
        if field not in record:
            raise ValueError(
                f"{place} has no {field!r}; its columns are {', '.join(record)}, and a line has {FORMS[kind]}"
            )
        earlier_messages, response = _split(f"{place}, {field}", record[field])
        prompt_messages = prompt_messages or earlier_messages
        if earlier_messages and earlier_messages != prompt_messages:
            raise ValueError(f"{place}: the messages before {field!r} are not its prompt")
        if not isinstance(prompt_messages, list) or not prompt_messages:
            raise ValueError(f"{place} has no prompt; a line has {FORMS[kind]}")
        messages = [*prompt_messages, {"role": "assistant", "content": response}]
        conversation = parse_conversation(place, {**record, "messages": messages})
        responses.append(response)
    if len(set(responses)) < len(responses):
        raise ValueError(
            f"{place} chooses {responses[0][:80]!r} over itself; leave the pair out, or correct one of "
            "the two."
        )
    labels = {}
    if kind == "safety":
        if not isinstance(record.get("safe"), bool):
            raise ValueError(f"{place} has safe={record.get('safe')!r}; set true or false.")
        labels["safe"] = record["safe"]
    conversation["messages"].pop()
    return conversation | {"responses": responses} | labels


def read_preferences(
    kind: RewardKind, data: str | OwnData, num_held_out: int, seed: int
) -> tuple[list[dict], list[dict]]:
    """Read records for a reward model and return (training set, held-out set).

    Whole prompts are held out: prompts are drawn by `seed` until they have at least num_held_out
    records.

    Args:
        kind: See `parse_preference`, which also describes a record.
        data: A path, or a block with its split and columns.
        num_held_out: Smallest number of held-out records.
        seed: Seed of the choice of held-out prompts.

    Raises:
        ValueError: One side would be empty or too small. Also as `parse_preference` and
            `read_records` do.
    """
    own_data = as_own(data)
    with needing(LINES[kind]):
        records = [
            parse_preference(kind, place, renamed(place, record, own_data.columns))
            for place, record in read_records(own_data.path, own_data.split)
        ]
    records_by_prompt: dict[str, list[dict]] = {}
    for record in records:
        records_by_prompt.setdefault(str(record["messages"]), []).append(record)
    groups = list(records_by_prompt.values())
    train: list[dict] = []
    held_out: list[dict] = []
    for index in np.random.default_rng(seed).permutation(len(groups)):
        (held_out if len(held_out) < num_held_out else train).extend(groups[index])
    if not train or len(held_out) < num_held_out:
        raise ValueError(
            f"num_held_out={num_held_out} of {len(records)} records about {len(groups)} prompts in "
            f"{own_data.path} leaves none to train on; lower it"
        )
    return train, held_out


def _split(place, response):
    """Return (messages before a response, its text)."""
    if not isinstance(response, list):
        if not isinstance(response, str) or not response.strip():
            raise ValueError(f"{place} has no text")
        return [], response
    *earlier_messages, last_message = check_turns(place, response, last="assistant")
    return earlier_messages, last_message["content"]


def render_record(
    tokenizer: Tokenizer, record: Mapping, index: int, *, template: str
) -> list[list[int]]:
    """Return the ids of each response of a record, as `render_response` makes them.

    Raises:
        ValueError: As `render_response` does; the message has the record's index.
    """
    try:
        return [
            render_response(tokenizer, record["messages"], response, template=template)
            for response in record["responses"]
        ]
    except ValueError as error:
        raise ValueError(f"record {index} of the data: {error}") from error
