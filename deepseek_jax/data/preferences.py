"""Training data of reward models: pairs of responses, and responses labelled safe or unsafe."""

from pathlib import Path

import numpy as np

from deepseek_jax.data.builders import json_lines
from deepseek_jax.data.chat import render_response
from deepseek_jax.data.messages import parse_conversation
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.files import as_path

# Kind of record -> the fields that hold its responses, the better one first
RESPONSES = {"helpfulness": ("chosen", "rejected"), "safety": ("response",)}
# Lines of a jsonl file, for error messages
EXAMPLES = {
    "helpfulness": '{"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}',
    "safety": '{"prompt": "2 + 3?", "response": "5", "safe": true}',
}


def parse_preference(kind: str, place: str, record):
    """A record of a pair ("helpfulness") or of a labelled response ("safety"), checked.

    record: "prompt", a str, or "messages", ending in a user's; "chosen" and "rejected", or "response" and
    "safe"; optionally "weight". Returns a dict: messages, those before the response; responses, a list of
    str; weight, a float; and of a labelled response safe, a bool. Raises ValueError, with the place, for
    any other record, and for a pair of equal responses.
    """
    messages = record.get("messages")
    if ("prompt" in record) == (messages is not None):
        raise ValueError(f"{place} needs either 'prompt' or 'messages'; it has {sorted(record)}.")
    if messages is None:
        messages = [{"role": "user", "content": record["prompt"]}]
    if not isinstance(messages, list):
        raise ValueError(f"{place} has no list under 'messages'.")
    responses = []
    for field in RESPONSES[kind]:
        if not isinstance(record.get(field), str) or not record[field].strip():
            raise ValueError(f"{place} has no text under {field!r}; it has {sorted(record)}.")
        responses.append(record[field])
        # Check it as a conversation that ends in the response; the last one is removed again below
        answered = [*messages, {"role": "assistant", "content": record[field]}]
        parsed = parse_conversation(place, record | {"messages": answered})
    if len(set(responses)) < len(responses):
        raise ValueError(
            f"{place} chooses {responses[0][:80]!r} over itself; leave the pair out, or correct one of "
            "the two."
        )
    more = {}
    if kind == "safety":
        if not isinstance(record.get("safe"), bool):
            raise ValueError(f"{place} has safe={record.get('safe')!r}; set true or false.")
        more["safe"] = record["safe"]
    parsed["messages"].pop()
    return parsed | {"responses": responses} | more


def read_preferences(kind: str, path: str | Path, num_held_out: int, seed: int):
    """(training set, held-out set) of a jsonl file of records, see parse_preference: lists.

    Whole prompts are held out, chosen by seed, until they have num_held_out records or more. Raises
    ValueError for a missing file, where one side would be empty, and as parse_preference does.
    """
    if not as_path(path).is_file():
        raise ValueError(
            f"path='{path}' is not a file; set it to a jsonl file of lines such as {EXAMPLES[kind]}"
        )
    records = [parse_preference(kind, place, record) for place, record in json_lines(path)]
    prompts = {}
    for record in records:
        prompts.setdefault(str(record["messages"]), []).append(record)
    groups = list(prompts.values())
    train, held_out = [], []
    for index in np.random.default_rng(seed).permutation(len(groups)):
        (held_out if len(held_out) < num_held_out else train).extend(groups[index])
    if not train or len(held_out) < num_held_out:
        raise ValueError(
            f"num_held_out={num_held_out} of {len(records)} records about {len(groups)} prompts in {path} "
            "leaves none to train on; lower it"
        )
    return train, held_out


def render_record(tokenizer: Tokenizer, record, index: int, *, template: str):
    """The ids of each of a record's responses, by render_response; errors name the record by its index."""
    try:
        return [
            render_response(tokenizer, record["messages"], response, template=template)
            for response in record["responses"]
        ]
    except ValueError as error:
        raise ValueError(f"record {index} of the data: {error}") from error
