"""A tool of one's own: a function with type hints and such a docstring. Copy this file and change it."""


def multiply(a: float, b: float) -> float:
    """Multiply two numbers.

    Args:
        a: The first factor.
        b: The second factor.
    """
    return float(a) * float(b)
