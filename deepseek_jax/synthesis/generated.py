"""Conversations with a teacher's answers, as a TFDS dataset that fine-tuning reads: data.messages."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.builders import TextBuilder, build

TEXTS = ("question", "answer", "language", "origin", "derived_from")  # "" where there is none


class TeacherConversations(TextBuilder):
    """Records of messages, weight, reward, tokens and TEXTS. TFDS shuffles them.

    records: a function without arguments that yields the records, dicts.
    """

    def __init__(self, records=None, **kwargs):
        self._records = records
        super().__init__(**kwargs)

    def _info(self):
        text = tfds.features.Text()
        features = {name: text for name in TEXTS} | {
            "messages": tfds.features.Sequence({"role": text, "content": text}),
            "weight": np.float32,
            "reward": np.float32,
            "tokens": np.int32,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        yield from enumerate(self._records())


def write_conversations(records: Callable, data_dir: Path) -> Path:
    """Write records(), an iterable of dicts, as array_record: -> the folder that read_conversations reads.

    builders.build writes all of them or nothing, in the first of several processes.
    """
    build(partial(TeacherConversations, records=records), None, data_dir)
    return dataset_folder(data_dir)


def dataset_folder(data_dir: Path):
    """The folder below data_dir that write_conversations writes."""
    return data_dir / "teacher_conversations" / str(TeacherConversations.VERSION)
