"""Datasets that are written on disk once, as TFDS stores them, without TensorFlow.

Later runs, and the other processes of a run, read the written files by random access.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from deepseek_jax.data.columns import renamed
from deepseek_jax.data.records import content_digest, read_records
from deepseek_jax.data.stored import INFO, RandomAccess, stored_dataset, stored_records
from deepseek_jax.files import PARTIAL, as_path, is_remote, upload
from deepseek_jax.parallel.led import Led
from deepseek_jax.parallel.processes import first_process, from_each
from deepseek_jax.progress import waiting_for

VERSION = "1.0.0"
SPLIT = "train"
# Most records in a file
SHARD = 2**17


@dataclass(frozen=True)
class Dataset:
    """Description of a dataset to write: its records, in order, in one split.

    Attributes:
        name: The folder below data_dir, one or two names. It contains a digest of what the records
            depend on, so that other records are another dataset.
        features: Name -> a feature of tfds.features.
        records: Returns the records to write, an iterable of dicts.
    """

    name: str
    features: dict[str, Any]
    records: Callable[[], Iterable[dict]]

    def folder(self, data_dir: str | Path) -> epath.Path:
        """Return the folder that this dataset is written to."""
        return as_path(data_dir) / self.name / VERSION


def of_files(
    kind: str,
    path: str | Path,
    split: str,
    columns: dict[str, str],
    features: dict[str, Any],
    parse: Callable[[str, dict], dict],
) -> Dataset:
    """Describe the Dataset of a path that data.records reads.

    Its name ends in a digest of the files' content, the split and the columns. So an edited file is
    another dataset. Another split of a TFDS dataset is another dataset too, although only the
    description of a TFDS dataset is digested.

    Args:
        kind: First part of the dataset's name.
        path: A path of data.records.
        split: The split to read.
        columns: Our name -> the name of the column in the data.
        features: See `Dataset`.
        parse: parse(place, record) returns the record to write.
    """
    digest = content_digest(path, split)
    if columns or split != SPLIT:
        digest += parameter_digest((split, tuple(columns.items())))

    def records():
        for place, record in read_records(path, split):
            yield parse(place, renamed(place, record, columns))

    stem = re.sub("[^0-9A-Za-z]+", "_", Path(path).stem)
    return Dataset(f"{kind}/{stem}_{digest}", features, records)


def parameter_digest(parameters):
    """Return 8 hexadecimal digits that identify the parameters of a dataset.

    Args:
        parameters: A dataclass, a tuple or None; its repr is digested.
    """
    return blake2b(repr(parameters).encode(), digest_size=4).hexdigest()


def build(dataset: Dataset, data_dir: str | Path, *, led: Led | None = None) -> RandomAccess:
    """Return the records of a Dataset, by random access; write it under data_dir if it is missing.

    Several processes share the folder: the first one writes and the others wait. If the writing
    fails, it fails on all of them. A killed build leaves a folder that is never read (files.PARTIALS).

    The files are array_record, which needs no TensorFlow and is only read from local disk: of a
    dataset in a bucket each machine reads a copy.

    Args:
        dataset: What to write.
        data_dir: A folder, also one in a bucket.
        led: For records that the devices of all processes compute together. It lets process 0 call
            that computation while it writes.

    Raises:
        ValueError: On the other processes, if process 0 could not write. Process 0 raises the error
            itself.
    """
    folder, failure = dataset.folder(data_dir), None
    with led or contextlib.nullcontext():
        if first_process() and not (folder / INFO).exists():
            try:
                _write(dataset, folder)
            # Any exception: the other processes wait for the outcome in from_each
            except Exception as error:
                failure = error
    own_message = None if failure is None else f"{type(failure).__name__}: {failure}"
    message = from_each(own_message)[0]
    if failure is not None:
        raise failure
    if message is not None:
        raise ValueError(f"process 0 could not build the dataset: {message}")
    return stored_records(stored_dataset(folder), SPLIT)


def _write(dataset, folder):
    """Write all records, or nothing."""
    parent_folder = tempfile.gettempdir() if is_remote(folder) else folder.parent
    Path(parent_folder).mkdir(parents=True, exist_ok=True)
    partial_folder = Path(tempfile.mkdtemp(prefix=f".{folder.name}{PARTIAL}", dir=parent_folder))
    try:
        with waiting_for(f"building the data {dataset.name}"):
            _write_records(dataset, partial_folder)
        if is_remote(folder):
            upload(partial_folder, folder, last=INFO)
        else:
            partial_folder.rename(folder)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _write_records(dataset, folder):
    name, _, config = dataset.name.partition("/")
    identity = tfds.core.DatasetIdentity(
        name=name,
        version=tfds.core.Version(VERSION),
        data_dir=str(folder),
        module_name="",
        config_name=config or None,
    )
    features = tfds.features.FeaturesDict(dataset.features)
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, SHARD, file_format="array_record")
    writer.initialize_splits([SPLIT])
    try:
        writer.add_examples({SPLIT: dataset.records()})
    finally:
        writer.close_all()
