"""How many read a run's documents side by side."""


def check_readers(readers: int, rows: int, field: str = "batch_size"):
    """Raise ValueError where readers cannot pack equal shares of a batch's rows. field: the rows' name."""
    if rows % readers:
        raise ValueError(
            f"readers={readers} does not divide the rows of a batch, {field}={rows}; set readers to a "
            f"divisor of {rows}"
        )
