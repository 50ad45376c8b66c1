"""Writer of conversations with a teacher's answers, as a TFDS dataset that data.messages reads.

Tests: tests/synthesis/test_sift.py, tests/recipes/generate/test_run.py.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.messages import MESSAGES
from deepseek_jax.data.order import hashed_order
from deepseek_jax.data.written import VERSION, Dataset, build

NAME = "teacher_conversations"
# Each is "" in a record that does not have it
TEXTS = ("question", "answer", "language", "origin", "derived_from")
FEATURES = dict.fromkeys(TEXTS, tfds.features.Text()) | {
    "messages": MESSAGES,
    "weight": np.float32,
    "reward": np.float32,
    "tokens": np.int32,
}


def write_conversations(records: Callable, data_dir: Path) -> Path:
    """Write the dicts of records() as a dataset; return its folder, for read_conversations.

    The files are array_record. All records are in memory at once, to be put in the order of hashes
    of their numbers. `written.build` writes all of them or nothing, in the first of several
    processes.

    Args:
        records: Returns an iterable of dicts with the features of FEATURES.
        data_dir: The folder in which the dataset gets its own folder.
    """

    def ordered_records():
        record_list = list(records())
        return (record_list[index] for index in hashed_order(range(len(record_list))))

    dataset = Dataset(NAME, FEATURES, ordered_records)
    build(dataset, data_dir)
    return dataset.folder(data_dir)


def dataset_folder(data_dir: Path) -> Path:
    """Return the folder below data_dir that write_conversations writes."""
    return data_dir / NAME / VERSION
