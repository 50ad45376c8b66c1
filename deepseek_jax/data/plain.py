"""Values of parquet, of arrow and of TFDS as values that JSON can hold."""

import base64
import math
from collections.abc import Mapping

import numpy as np


def plain(value):
    """A value as JSON can hold it: NaN is None, and what JSON has no form for (a time, a Decimal, infinity)
    is its text. Bytes are UTF-8 text, or else {"base64": ...}, which nothing takes for a text to learn.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    return str(value)


def rows_of_tfds(value):
    """A value of TFDS in which a list of dicts is one again: TFDS stores it as a dict of lists."""
    if isinstance(value, (list, np.ndarray)):
        return [rows_of_tfds(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    fields = {key: rows_of_tfds(entry) for key, entry in value.items()}
    columns = [entry for entry in fields.values() if isinstance(entry, list)]
    if columns and len(columns) == len(fields) and len({len(column) for column in columns}) == 1:
        return [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]
    return fields
