"""Config fields that say where a user's data are; every block that reads data has them."""

import dataclasses

from deepseek_jax.settings import Data


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnData:
    """Where a user's data are, and how their columns are named.

    Attributes:
        path: Data that data.records can read.
        split: The split to read.
        columns: Our name -> the name of the column in the data, such as {"question": "prompt"}.
    """

    path: Data | None = None
    split: str = "train"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPath(OwnData):
    """OwnData with a required path, for a field that may be a path or a block."""

    # field() removes the default None that OwnData gives
    path: Data = dataclasses.field()


# The type of a field that is either a path, or a block of path, split and columns
PathOrBlock = Data | OwnPath


def as_own(value: str | OwnData) -> OwnPath:
    """Return a value, a path or a block that has one, as a block."""
    if isinstance(value, OwnData):
        assert value.path is not None
        return OwnPath(path=value.path, split=value.split, columns=value.columns)
    return OwnPath(path=str(value))
