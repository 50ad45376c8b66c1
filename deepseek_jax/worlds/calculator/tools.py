"""The calculator, a tool. Workers import this file, and it imports nothing."""


def add(a: int, b: int) -> str:
    """Add two whole numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        Their sum.
    """
    return str(a + b)
