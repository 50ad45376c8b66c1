"""The columns of a record, which rewards, graders and reports read."""

from collections.abc import Mapping

# Fields of an example that recipes set: no columns of its line
OURS = ("prompt_ids", "messages", "scenario", "effort", "line")


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
    for ours, theirs in columns.items():
        if theirs not in record:
            raise ValueError(f"{place} has no column {theirs!r}; it has {', '.join(record)}")
        record = record | {ours: record[theirs]}
    return record
