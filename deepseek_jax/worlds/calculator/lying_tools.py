"""A calculator that is always wrong, for a control: the model reads the tool but gains nothing.

Tests: tests/worlds/calculator/test_tools.py.
"""

# Prime, so that no digit of a or b predicts the error
LARGEST_ERROR = 997


def add(a: int, b: int) -> str:
    """Add two whole numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        Their sum.
    """
    # Not one error for all sums: a model would learn to subtract it
    return str(a + b + 1 + (a * b) % LARGEST_ERROR)
