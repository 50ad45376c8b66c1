"""Lists of short texts, written as one text."""

import re


def forms(text):
    """The pieces of `text` that a bar between spaces parts."""
    return re.split(r"\s\|\s+", text.strip())
