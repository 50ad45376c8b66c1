"""Packing with the fields of Rows as keywords."""

import dataclasses

from deepseek_jax.data.packing import Rows

FIELDS = {field.name for field in dataclasses.fields(Rows)}


def with_rows(pack):
    """The function pack(*sources, Rows, ...), which takes the fields of Rows among its keywords."""

    def packing(*sources, **options):
        fields = {name: options.pop(name) for name in FIELDS & options.keys()}
        return pack(*sources, Rows(**fields), **options)

    return packing
