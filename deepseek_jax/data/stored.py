"""Datasets that TFDS has stored on disk, opened safely.

All files of a dataset must be whole, and no code that a dataset names is ever run.
"""

import bisect
import itertools
import json
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from deepseek_jax.files import as_path, staged

# Every dataset has this file; it is the last one that a build writes
INFO = "dataset_info.json"
# Fields of features.json that name a Python class, which TFDS imports
CLASS_FIELDS = ("pythonClassName", "python_class_name", "type")
FEATURES = "tensorflow_datasets."
WHOLE = "copy or prepare the dataset anew"


class RandomAccess(Protocol):
    """Records by their numbers: a list, or what reads them from disk.

    It may have __getitems__(list of int), which reads several records in one call.
    """

    def __len__(self) -> int: ...

    # Any: a dict, or a text
    def __getitem__(self, index: int, /) -> Any: ...


def is_stored(path: str | Path) -> bool:
    """Return whether a path is the folder of a version of a TFDS dataset.

    A folder of datasets.save_to_disk is not one, although it also has a file INFO.
    """
    folder = as_path(path)
    return (folder / INFO).is_file() and not (folder / "state.json").is_file()


def stored_dataset(path: str | Path):
    """Return a TFDS builder of the prepared dataset at `path`, the folder of one version.

    Raises:
        ValueError: There is no dataset, its description cannot be read, or the description names a
            class of a package other than tensorflow_datasets. Reading that description would
            import, hence run, the package.
    """
    if not (as_path(path) / INFO).is_file():
        raise ValueError(
            f"path='{path}' is not a TFDS dataset: there is no {INFO}; set it to the folder of a "
            f"version, as DATA_DIR/NAME/1.0.0, or to a file"
        )
    folder = staged(path)
    try:
        features = json.loads((folder / "features.json").read_text())
        foreign_class = next(
            (name for name in _classes(features) if not name.startswith(FEATURES)), None
        )
        if foreign_class is None:
            return tfds.builder_from_directory(folder)
    # Any exception: json, protobuf and TFDS raise errors of their own
    except Exception as error:
        raise ValueError(
            f"path='{path}' is a damaged TFDS dataset: {type(error).__name__}: {error}; {WHOLE}"
        ) from error
    raise ValueError(
        f"path='{path}': features.json names the class {foreign_class}, which would be imported; prepare the "
        "dataset with features of tensorflow_datasets alone"
    )


def stored_records(builder, split: str, path: str | Path | None = None) -> RandomAccess:
    """Open a split, or a slice of it, for random access to its records.

    A missing, cut or damaged file raises at once if its index shows it, else when a damaged record
    is read. Without this check a reader of array_record would wait for ever for the records of a
    cut file.

    Args:
        builder: As `stored_dataset` returns it.
        split: The split, or a slice such as "train[:90%]".
        path: The path that the user gave; None for a dataset that this project has built.

    Raises:
        ValueError: There is no such split, or one of its files is missing, cut short or damaged;
            the message names the file.
    """
    try:
        instructions = builder.info.splits[split].file_instructions
        if not instructions:
            raise ValueError("the slice is empty")
    except ValueError as error:
        raise ValueError(
            f"path='{path}' has no records in split={split!r}; choose from "
            f"{', '.join(builder.info.splits)}, or a slice: {error}"
        ) from error
    error_prefix = "" if path is None else f"path='{path}': "
    remedy = f"remove {builder.data_path}, and it is built anew" if path is None else WHOLE
    if builder.info.file_format.value == "array_record":
        for instruction in instructions:
            _check_length(error_prefix, instruction, remedy)
        return Records(builder.as_data_source(split=split), instructions, error_prefix, remedy)
    try:
        return builder.as_data_source(split=split)
    except (OSError, ValueError) as error:
        files = " or ".join(sorted({str(instruction.filename) for instruction in instructions}))
        raise ValueError(f"{error_prefix}{files} cannot be read ({error}); {remedy}") from error


class Records:
    """Records of array_record files; a damaged record raises ValueError with the name of its file.

    Args:
        source: The data source of TFDS.
        parts: TFDS's file instructions, in the order of the records.
        given: The beginning of the error message.
        remedy: The end of the error message.
    """

    def __init__(self, source, instructions, error_prefix: str, remedy: str):
        self._source, self._error_prefix, self._remedy = source, error_prefix, remedy
        self._files = [str(instruction.filename) for instruction in instructions]
        self._ends = list(itertools.accumulate(instruction.take for instruction in instructions))

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index: int):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        try:
            return self._source.__getitems__(indices)
        except RuntimeError as error:
            files = {self._files[bisect.bisect_right(self._ends, index)] for index in indices}
            raise ValueError(
                f"{self._error_prefix}{' or '.join(sorted(files))} is damaged ({error}); {self._remedy}"
            ) from error


def _classes(tree):
    """Yield the Python classes that a parsed features.json names."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in entries:
        if key in CLASS_FIELDS and isinstance(value, str) and "." in value:
            yield value
        elif isinstance(value, (dict, list)):
            yield from _classes(value)


def _check_length(error_prefix, instruction, remedy):
    path, length = str(instruction.filename), instruction.examples_in_shard
    if not Path(path).is_file():
        raise ValueError(f"{error_prefix}{path} is missing; {remedy}")
    # The reader of a cut file has no records, wherever the cut is; close() raises the reason
    num_readable, cause = 0, ""
    try:
        reader = array_record_module.ArrayRecordReader(path)
        num_readable = reader.num_records()
        reader.close()
    except RuntimeError as error:
        cause = f" ({error})"
    if num_readable != length:
        raise ValueError(
            f"{error_prefix}{path} is cut short or damaged: {num_readable} of its {length} records can be "
            f"read{cause}; {remedy}"
        )
