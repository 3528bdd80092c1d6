"""Tools of a pocket calculator."""


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a + b


def subtract(a: int, b: int) -> int:
    """Takes one number away from another.

    Args:
        a: What is taken from.
        b: What is taken away.
    """
    return a - b


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a * b
