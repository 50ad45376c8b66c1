"""Columns of a record, which rewards, graders and reports read.

Also here: reserved names, renaming of columns, and conversion of values to JSON.

Tests: tests/data/test_records.py, tests/data/test_messages.py.
"""

import base64
import math
from collections.abc import Mapping

import numpy as np

# Fields of an example that recipes set; they are not columns of its line
OURS = ("prompt_ids", "messages", "scenario", "effort", "line", "conversation")


def check_names(place: str, record: Mapping):
    """Raise ValueError for a column with a name in OURS, except messages.

    The message has the place.
    """
    taken = [name for name in OURS if name in record and name != "messages"]
    if taken:
        raise ValueError(
            f"{place} has a column {taken[0]!r}, the name of a part of the prompt here; name it otherwise"
        )


def columns_of(example: Mapping) -> dict:
    """Return the columns of an example's line, with question and answer."""
    return {key: value for key, value in example.items() if key not in OURS}


def shown_columns(example: Mapping) -> dict:
    """Return the columns of an example without its question, as values that JSON has.

    Other values become their text.
    """
    return {
        name: value if isinstance(value, (str, int, float, type(None))) else str(value)
        for name, value in columns_of(example).items()
        if value != example["question"]
    }


def renamed(place: str, record: dict, columns: Mapping[str, str]) -> dict:
    """Return a record that also has its columns under our names.

    Args:
        place: Where the record is, for error messages.
        record: The record as it was read.
        columns: Our name -> the name of the column in the record.

    Raises:
        ValueError: The record does not have one of the columns; the message has the place.
    """
    for theirs in columns.values():
        if theirs not in record:
            raise ValueError(f"{place} has no column {theirs!r}; it has {', '.join(record)}")
    # In one step, because two columns may swap their names
    return record | {ours: record[theirs] for ours, theirs in columns.items()}


def plain(value):
    """Return a value with JSON types only.

    NaN becomes None. A value that JSON has no form for (a time, a Decimal, infinity) becomes its
    text. Bytes become their UTF-8 text; bytes that are not UTF-8 become {"base64": ...}, so that
    nothing takes them for a text to learn.
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
    """Turn each dict of lists in a TFDS value back into a list of dicts.

    TFDS stores a list of dicts as a dict of lists.
    """
    if isinstance(value, (list, np.ndarray)):
        return [rows_of_tfds(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    fields = {key: rows_of_tfds(entry) for key, entry in value.items()}
    columns = [entry for entry in fields.values() if isinstance(entry, list)]
    if columns and len(columns) == len(fields) and len({len(column) for column in columns}) == 1:
        return [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]
    return fields
