"""The columns of a record, which rewards, graders and reports read."""

from collections.abc import Mapping

# Fields of an example that recipes set: no columns of its line
OURS = ("prompt_ids", "messages", "scenario", "effort", "line")


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
        if name != "question"
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
