"""Conversations that a teacher wrote, as a TFDS dataset that fine-tuning reads: data.messages."""

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.builders import TextBuilder, build

TEXTS = ("question", "answer", "language", "origin", "derived_from")  # "" where there is none


class TeacherConversations(TextBuilder):
    """Records of messages, weight, reward, tokens and TEXTS, in an order of TFDS's own.

    records: a function without arguments that gives them, dicts, one by one.
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


def write_conversations(records, data_dir):
    """Write records(), an iterable of dicts, as array_record: -> the folder that read_conversations reads.

    As builders.build: whole or not at all, by the first of several processes.
    """
    build(TeacherConversations, None, data_dir, records=records)
    return dataset_folder(data_dir)


def dataset_folder(data_dir):
    """Where write_conversations writes below data_dir."""
    return data_dir / "teacher_conversations" / str(TeacherConversations.VERSION)
