"""The columns of a record, which rewards, graders and reports read."""

import base64
import math
from collections.abc import Mapping

import numpy as np

# Fields of an example that recipes set: no columns of its line
OURS = ("prompt_ids", "messages", "scenario", "effort", "line", "conversation")


def check_names(place: str, record: Mapping):
    """Raise ValueError, with the place, for a column that has the name of one of OURS but messages."""
    taken = [name for name in OURS if name in record and name != "messages"]
    if taken:
        raise ValueError(
            f"{place} has a column {taken[0]!r}, the name of a part of the prompt here; name it otherwise"
        )


def columns_of(example: Mapping) -> dict:
    """The columns of an example's line, question and answer among them."""
    return {key: value for key, value in example.items() if key not in OURS}


def shown_columns(example: Mapping) -> dict:
    """The columns of an example beside its question, as JSON can hold them."""
    return {
        name: value if isinstance(value, (str, int, float, type(None))) else str(value)
        for name, value in columns_of(example).items()
        if value != example["question"]
    }


def renamed(place: str, record: dict, columns: Mapping[str, str]) -> dict:
    """A record that has its columns under the names that we read, too. columns: our name -> the column's own.

    Raises ValueError, with the place, for a column that is not there.
    """
    for theirs in columns.values():
        if theirs not in record:
            raise ValueError(f"{place} has no column {theirs!r}; it has {', '.join(record)}")
    # At once: two columns may change their names
    return record | {ours: record[theirs] for ours, theirs in columns.items()}


def plain(value):
    """A value as JSON can hold it: NaN is None, and what JSON has no form for (a time, a Decimal, infinity)
    is its text. Bytes are UTF-8 text, or else {"base64": ...}, which nothing takes for a text to learn.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    return str(value)


def rows_of_tfds(value):
    """A value of TFDS in which a list of dicts is one again: TFDS stores it as a dict of lists."""
    if isinstance(value, (list, np.ndarray)):
        return [rows_of_tfds(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    fields = {key: rows_of_tfds(entry) for key, entry in value.items()}
    columns = [entry for entry in fields.values() if isinstance(entry, list)]
    if columns and len(columns) == len(fields) and len({len(column) for column in columns}) == 1:
        return [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]
    return fields
