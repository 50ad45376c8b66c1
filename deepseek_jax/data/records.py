"""Reader of a user's data, record by record: files of several formats, folders and the hub.

Other files of this folder call `read_records` and turn its dicts into questions, conversations,
preferences or documents.
"""

import contextlib
import csv
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from deepseek_jax.data.columns import plain, rows_of_tfds
from deepseek_jax.data.hub_files import dataset_files
from deepseek_jax.data.stored import INFO, is_stored, stored_dataset, stored_records
from deepseek_jax.files import as_path, parse_json, staged
from deepseek_jax.hub import hub_id

# Files that datasets.save_to_disk writes: STATE in the folder of a split, DICT above several splits
STATE, DICT = "state.json", "dataset_dict.json"
SAVE_ANEW = "save the data set anew"
# Rows of parquet or arrow that are Python objects at the same time
BLOCK = 256
# A csv field may hold a whole text; the default limit of the csv module is 128 KiB
MOST_OF_A_FIELD = 2**30
FORMS = (
    "a jsonl, json, csv or parquet file, a folder that datasets.save_to_disk wrote, the folder of a TFDS "
    "dataset's version, or a name on the Hugging Face hub"
)


class NoData(ValueError):
    """A path is not one of FORMS, or it has no records."""


@contextlib.contextmanager
def needing(line: str):
    """Append an example line to the message of a NoData error from the body.

    Args:
        line: A line of jsonl with the columns that the body reads.
    """
    try:
        yield
    except NoData as error:
        # Changed in place, as errors.at does
        error.args = (f"{error}; a line of jsonl is {line}",)
        raise


def read_records(path: str | Path, split: str = "train") -> Iterator[tuple[str, dict]]:
    """Read a file, or one split of a data set, record by record: yield (place, record).

    Only a few records are in memory at once, except for a json file, which is read whole.

    Args:
        path: A jsonl, json (a list of objects), csv or parquet file; a folder that
            datasets.save_to_disk wrote; the folder of a TFDS dataset's version; or
            ORG/NAME[:SUBSET][@REVISION] on the hub.
        split: The split to read. A file only has "train".

    Yields:
        place names the file and the line, row or entry, for error messages. record is a dict with
        JSON values only, see `columns.plain`.

    Raises:
        ValueError: The path or the split does not exist, has another format or has no record. Also
            for a record that cannot be read; the message then has its place.
    """
    if is_stored(path):
        records = _tfds(path, split)
    else:
        files = data_files(path, split)
        # Messages name a single file as the user wrote it
        names = [path] if len(files) == 1 and files[0].suffix != ".arrow" else files
        records = itertools.chain.from_iterable(
            READERS[file.suffix](file, name) for file, name in zip(files, names, strict=True)
        )
    is_empty = True
    for place, record in records:
        is_empty = False
        yield place, plain(record)
    if is_empty:
        raise NoData(f"path='{path}' holds no records; give {FORMS} with some")


def data_files(path: str | Path, split: str = "train") -> list[Path]:
    """Return the local files that hold the records of a path, in order.

    Files on the hub are downloaded.

    Raises:
        ValueError: The path is not one of FORMS, or does not have the split.
    """
    if hub_id(path) is not None:
        return dataset_files(str(path), split)
    location = as_path(path)
    if location.is_dir():
        return _arrow_files(staged(path), path, split)
    if not location.is_file():
        raise NoData(f"path='{path}' is not a file; set it to {FORMS}")
    if location.suffix not in READERS:
        raise NoData(f"path='{path}' ends in {location.suffix!r}, which is not read; give {FORMS}")
    if split != "train":
        raise ValueError(
            f"path='{path}' is a file, which has no split={split!r}; set split to 'train'"
        )
    return [staged(path)]


def content_digest(path: str | Path, split: str = "train") -> str:
    """Return 16 hexadecimal digits that identify the content of a path.

    For a TFDS dataset only its description (dataset_info.json) is digested.
    """
    files = [staged(as_path(path) / INFO)] if is_stored(path) else data_files(path, split)
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, hashlib.blake2b).digest())
    return digest.hexdigest()


def _arrow_files(folder, path, split):
    if (folder / DICT).is_file():
        splits = _field(folder / DICT, "splits")
        if split not in splits:
            raise ValueError(
                f"path='{path}' has no split={split!r}; choose from {', '.join(map(str, splits))}"
            )
        folder = folder / split
    elif split != "train":
        raise ValueError(f"path='{path}' has a single split: leave split={split!r} out")
    if not (folder / STATE).is_file():
        raise ValueError(f"path='{path}' is a folder without {STATE} and {INFO}; give {FORMS}")
    entries = _field(folder / STATE, "_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
    if len(names) < len(entries) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder / STATE} names no files; {SAVE_ANEW}")
    return [folder / name for name in names]


def _field(file, name):
    """Return a field, which must be a list, of a JSON file that datasets.save_to_disk wrote."""
    try:
        fields = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}; {SAVE_ANEW}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get(name), list):
        raise ValueError(f"{file} has no list {name!r}; {SAVE_ANEW}")
    return fields[name]


def _json_lines(file, name):
    # Open as bytes and decode line by line: a text file would raise for bad UTF-8 without the line's number
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{name}, line {number}"
                try:
                    record = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                # UnicodeDecodeError is a ValueError too
                except ValueError as error:
                    raise ValueError(
                        f"{place} is not JSON: {error}; give {{...}} on each line."
                    ) from error
                if not isinstance(record, dict):
                    raise ValueError(f"{place} is not a JSON object; give {{...}} on each line.")
                yield place, record


def _json(file, name):
    try:
        records = parse_json(file.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(
            f"{name} is not JSON: {error}; give a list of objects, or name a file of lines .jsonl"
        ) from error
    if not isinstance(records, list):
        raise ValueError(f"{name} is not a list of objects: [{{...}}, {{...}}]")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ValueError(f"{name}, entry {number} is not a JSON object; give {{...}}")
        yield f"{name}, entry {number}", record


def _csv(file, name):
    csv.field_size_limit(MOST_OF_A_FIELD)
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        try:
            columns = rows.fieldnames or ()
            _check_columns(name, columns)
            for record in rows:
                place = f"{name}, line {rows.line_num}"
                if None in record or None in record.values():
                    raise ValueError(
                        f"{place} has not one field for each of {', '.join(columns)}; quote fields "
                        "that have commas"
                    )
                yield place, record
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{name}, line {rows.line_num} is not csv: {error}") from error


def _parquet(file, name):
    import pyarrow
    import pyarrow.parquet

    try:
        # With pre_buffer the whole file would be in memory
        with pyarrow.parquet.ParquetFile(file, pre_buffer=False) as table:
            yield from _rows(name, table.iter_batches(batch_size=BLOCK))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{name} is no parquet file, or is damaged: {error}") from error


def _arrow(file, name):
    import pyarrow

    try:
        with pyarrow.OSFile(str(file)) as stream, pyarrow.ipc.open_stream(stream) as batches:
            yield from _rows(name, batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{name} is missing or damaged: {error}; {SAVE_ANEW}") from error


def _check_columns(name, columns):
    """Raise ValueError for a column that occurs twice: a record would keep only the last one."""
    repeated_column = next((column for column in columns if columns.count(column) > 1), None)
    if repeated_column is not None:
        raise ValueError(
            f"{name} has the column {repeated_column!r} twice; rename one of them, or leave it out"
        )


def _rows(name, batches):
    number = 0
    for batch in batches:
        _check_columns(name, batch.schema.names)
        for start in range(0, len(batch), BLOCK):
            for record in batch.slice(start, BLOCK).to_pylist():
                number += 1
                yield f"{name}, row {number}", record


# Has every ending in hub.DATA, and .arrow for the files that datasets.save_to_disk writes
READERS = {
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".arrow": _arrow,
}


def _tfds(path, split):
    source = stored_records(stored_dataset(path), split, path)
    for start in range(0, len(source), BLOCK):
        indices = list(range(start, min(start + BLOCK, len(source))))
        for index in indices:
            yield f"{path}, record {index}", rows_of_tfds(source[index])
