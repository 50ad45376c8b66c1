"""Datasets that TFDS builds on disk, without TensorFlow: of files, and of Python's own source."""

import contextlib
import re
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import tensorflow_datasets as tfds

from deepseek_jax.data.columns import renamed
from deepseek_jax.data.records import content_digest, read_records
from deepseek_jax.data.shuffled import shuffle_on_disk
from deepseek_jax.data.stored import INFO, stored_dataset, stored_records
from deepseek_jax.files import as_path, is_remote, upload
from deepseek_jax.parallel.led import Led
from deepseek_jax.parallel.processes import first_process, from_each
from deepseek_jax.progress import waiting_for


class QuietBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder without TFDS's own lines, which speak of downloads: nothing is downloaded."""

    # Without this line tfds looks for checksums, with a package that we lack
    url_infos = None

    def _log_download_bytes(self):
        """TFDS prints here."""

    def _log_download_done(self):
        """TFDS prints here."""


class TextBuilder(QuietBuilder, skip_registration=True):
    """Documents {"text": bytes} in one split "train"; a subclass generates them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}


@dataclass
class FileConfig(tfds.core.BuilderConfig):
    """The files of a path that data.records reads.

    Its name ends in a digest of their content, of the split and of the columns. An edited file is another
    dataset, and so is another split of a TFDS dataset, of which the description alone is digested. columns:
    of records.renamed, pairs of our name and the column's.
    """

    name: str = ""
    path: str = ""
    split: str = "train"
    columns: tuple = ()

    def __post_init__(self):
        digest = content_digest(self.path, self.split)
        if self.columns or self.split != "train":
            digest += parameter_digest((self.split, self.columns))
        self.name = f"{re.sub('[^0-9A-Za-z]+', '_', Path(self.path).stem)}_{digest}"

    def records(self):
        """The records, see read_records, with their columns renamed."""
        columns = dict(self.columns)
        for place, record in read_records(self.path, self.split):
            yield place, renamed(place, record, columns)


class FileCorpus(TextBuilder):
    """The documents of files, one record {"text": "..."} each."""

    def _generate_examples(self):
        for number, (place, record) in enumerate(self.builder_config.records()):
            text = record.get("text")
            if not isinstance(text, str):
                raise ValueError(f"{place} has no text under 'text'; it has {sorted(record)}.")
            # JSON can hold half of a surrogate pair, and UTF-8 cannot
            if re.search("[\ud800-\udfff]", text):
                raise ValueError(
                    f"{place} has half of a surrogate pair, which is no character; remove it."
                )
            yield number, {"text": text}


@dataclass
class PythonConfig(tfds.core.BuilderConfig):
    """The top-level modules of this Python's standard library. Its name has the version and their number."""

    name: str = ""

    def __post_init__(self):
        version = "_".join(map(str, sys.version_info[:3]))
        self.name = f"python_{version}_{len(python_modules())}_modules"


class PythonCorpus(TextBuilder):
    """The source of each module: real text that every machine has."""

    def _generate_examples(self):
        for path in python_modules():
            yield path.name, {"text": path.read_text(encoding="utf-8")}


def python_modules():
    """Paths of the standard library's top-level modules, sorted by name; without empty or non-UTF-8 ones."""
    folder = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in folder.glob("*.py") if _is_text(path))


def _is_text(path):
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except ValueError:
        return False


def parameter_digest(parameters):
    """8 hexadecimal digits that identify the parameters of a dataset: a dataclass, or None."""
    return blake2b(repr(parameters).encode(), digest_size=4).hexdigest()


def build(builder, config, data_dir: str | Path, *, led: Led | None = None):
    """Random access to the documents of a TextBuilder class; see `prepared`."""
    return stored_records(prepared(builder, config, data_dir, led=led), "train")


def prepared(builder, config, data_dir: str | Path, *, led: Led | None = None):
    """A builder of this class, to read from; the dataset is built under data_dir if it is not there yet.

    builder: the class, or a partial with its own arguments. config: a BuilderConfig, or None. led: computes
    the documents on the devices of all processes, where the class asks for that.

    A build that is killed leaves a folder INCOMPLETE, which is never read. Several processes share
    the folder: the first one builds and the others wait; if the build fails, it fails on all of them.
    Stored as array_record, which needs no TensorFlow, and which is read from local disk alone: of a dataset
    in a bucket each machine reads a copy.
    """
    make = partial(builder, config=config, file_format="array_record")
    # The work takes a few seconds
    tfds.disable_progress_bar()
    shuffle_on_disk()
    folder = failure = None
    with led or contextlib.nullcontext():
        if first_process():
            try:
                folder = _build(make, data_dir)
            # Any exception: the other processes wait for the outcome in from_each
            except Exception as error:
                failure = error
    failed = None if failure is None else f"{type(failure).__name__}: {failure}"
    folder, message = from_each([folder, failed])[0]
    if failure is not None:
        raise failure
    if message is not None:
        raise ValueError(f"process 0 could not build the dataset: {message}")
    # This process or the first one has built it by now
    if is_remote(data_dir):
        return stored_dataset(folder)
    return make(data_dir=data_dir)


def _build(make, data_dir):
    """Build a dataset unless it is there: -> its folder, a str. make(data_dir=...) -> its builder."""
    if not is_remote(data_dir):
        local = make(data_dir=data_dir)
        _prepare(local)
        return str(local.data_dir)
    with tempfile.TemporaryDirectory() as place:
        local = make(data_dir=place)
        target = as_path(data_dir) / Path(local.data_dir).relative_to(place).as_posix()
        if not (target / INFO).exists():
            _prepare(local)
            upload(local.data_dir, target, last=INFO)
    return str(target)


def _prepare(builder):
    """Build the dataset unless it is there."""
    with waiting_for(f"building the data {builder.name}"):
        builder.download_and_prepare()
