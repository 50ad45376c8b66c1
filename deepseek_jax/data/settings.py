"""The fields that say where a user's own data are: the same in every block that reads some."""

import dataclasses

from deepseek_jax.settings import Data


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnData:
    """path: data as data.records reads them. split: the one that is read. columns: our name -> the data's
    own, such as {"question": "prompt"}.
    """

    path: Data | None = None
    split: str = "train"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPath(OwnData):
    """The same where a config has a path, or in its place this block."""

    # Without field() the default of OwnData would stay
    path: Data = dataclasses.field()


# A field that is a path alone, or a block with its split and columns
PathOrBlock = Data | OwnPath


def as_own(value: str | OwnData) -> OwnData:
    """The block that a path stands for; a block as it is."""
    return value if isinstance(value, OwnData) else OwnPath(path=str(value))
