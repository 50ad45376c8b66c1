"""Datasets that are written on disk once, as TFDS stores them, without TensorFlow."""

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

from deepseek_jax.data.columns import renamed
from deepseek_jax.data.records import content_digest, read_records
from deepseek_jax.data.stored import INCOMPLETE, INFO, stored_dataset, stored_records
from deepseek_jax.files import as_path, is_remote, upload
from deepseek_jax.parallel.led import Led
from deepseek_jax.parallel.processes import first_process, from_each
from deepseek_jax.progress import waiting_for

VERSION = "1.0.0"
SPLIT = "train"
# Records of one file
SHARD = 2**17


@dataclass(frozen=True)
class Dataset:
    """What is written: the records that `records` yields, in their order, in one split.

    name: its folder below data_dir, one or two names; what the records depend on is digested in it, so that
    other records are another dataset. features: of tfds.features, by name.
    """

    name: str
    features: dict[str, Any]
    records: Callable[[], Iterable[dict]]

    def folder(self, data_dir: str | Path):
        """Where it is written."""
        return as_path(data_dir) / self.name / VERSION


def of_files(
    kind: str,
    path: str | Path,
    split: str,
    columns: dict[str, str],
    features: dict[str, Any],
    parse: Callable[[str, dict], dict],
) -> Dataset:
    """The Dataset of a path of data.records, each record by parse(its place, the record).

    Its name ends in a digest of the files' content, of the split and of the columns (our name -> the
    column's). An edited file is another dataset, and so is another split of a TFDS dataset, of which the
    description alone is digested.
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
    """8 hexadecimal digits that identify the parameters of a dataset: a dataclass, or None."""
    return blake2b(repr(parameters).encode(), digest_size=4).hexdigest()


def build(dataset: Dataset, data_dir: str | Path, *, led: Led | None = None):
    """Random access to the records of a Dataset, which is written under data_dir if it is not there yet.

    led: computes the records on the devices of all processes, where they ask for that. A build that is
    killed leaves a folder INCOMPLETE, which is never read. Several processes share the folder: the first one
    builds and the others wait; if the build fails, it fails on all of them. Stored as array_record, which
    needs no TensorFlow, and which is read from local disk alone: of a dataset in a bucket each machine reads
    a copy.
    """
    folder, failure = dataset.folder(data_dir), None
    with led or contextlib.nullcontext():
        if first_process() and not (folder / INFO).exists():
            try:
                _write(dataset, folder)
            # Any exception: the other processes wait for the outcome in from_each
            except Exception as error:
                failure = error
    failed = None if failure is None else f"{type(failure).__name__}: {failure}"
    message = from_each(failed)[0]
    if failure is not None:
        raise failure
    if message is not None:
        raise ValueError(f"process 0 could not build the dataset: {message}")
    return stored_records(stored_dataset(folder), SPLIT)


def _write(dataset, folder):
    """Write all records, or nothing."""
    near = tempfile.gettempdir() if is_remote(folder) else folder.parent
    Path(near).mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=INCOMPLETE.strip("*"), dir=near))
    try:
        with waiting_for(f"building the data {dataset.name}"):
            _write_records(dataset, made)
        if is_remote(folder):
            upload(made, folder, last=INFO)
        else:
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


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
