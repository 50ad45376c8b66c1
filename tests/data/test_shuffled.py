"""TFDS's shuffle on disk."""

import json

from tensorflow_datasets.core import shuffle

from deepseek_jax.data import shuffled
from deepseek_jax.data.sources import file_documents


def test_the_order_is_that_of_tfds_in_memory(tmp_path, monkeypatch):
    """Oracle: TFDS's own shuffle, which keeps so few examples in memory."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"text {i} " * (i % 7)}) + "\n" for i in range(500))
    )

    def texts(folder):
        source = file_documents(path, tmp_path / folder)
        return [source[i]["text"] for i in range(len(source))]

    in_memory = texts("memory")
    used = []
    monkeypatch.setattr(shuffled, "SHUFFLED_BYTES", 1000)
    monkeypatch.setattr(shuffled.Bucket, "del_file", lambda self: used.append(len(self)))
    assert texts("disk") == in_memory
    assert sum(used) == 500 and shuffle.BUCKETS_NUMBER == shuffled.BUCKETS == len(used)
