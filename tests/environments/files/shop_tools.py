"""Tools of a shop, for test_trl.py, which runs this file in TRL and here."""


def price(item: str, pieces: int = 1) -> float:
    """The price of an item.

    Args:
        item: Its name. (choices: ["pen", "book"])
        pieces: How many of it.

    Returns:
        The price of all pieces.
    """
    return {"pen": 1.5, "book": 12.0}[item] * pieces


def words(text: str, most: int | None = None) -> str:
    """The first words of a text.

    Args:
        text: The text.
        most: How many of them.
    """
    return " ".join(text.split()[:most])
