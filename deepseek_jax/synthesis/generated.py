"""Conversations with a teacher's answers, as a TFDS dataset that fine-tuning reads: data.messages."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.messages import MESSAGES
from deepseek_jax.data.order import hashed_order
from deepseek_jax.data.written import VERSION, Dataset, build

NAME = "teacher_conversations"
TEXTS = ("question", "answer", "language", "origin", "derived_from")  # "" where there is none
FEATURES = dict.fromkeys(TEXTS, tfds.features.Text()) | {
    "messages": MESSAGES,
    "weight": np.float32,
    "reward": np.float32,
    "tokens": np.int32,
}


def write_conversations(records: Callable, data_dir: Path) -> Path:
    """Write records(), an iterable of dicts, as array_record: -> the folder that read_conversations reads.

    They are held in memory, for an order of their own. written.build writes all of them or nothing, in the
    first of several processes.
    """

    def ordered():
        found = list(records())
        return (found[index] for index in hashed_order(range(len(found))))

    dataset = Dataset(NAME, FEATURES, ordered)
    build(dataset, data_dir)
    return dataset.folder(data_dir)


def dataset_folder(data_dir: Path):
    """The folder below data_dir that write_conversations writes."""
    return data_dir / NAME / VERSION
