"""Corpora of toy worlds on disk, through TFDS as array_record: documents that a function writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.builders import build, parameter_digest


@dataclass
class WrittenConfig(tfds.core.BuilderConfig):
    """Settings of one corpus. Its name contains them, so that other settings are another dataset.

    mix: a dataclass, of what the documents are. Whoever changes how documents are written raises the VERSION
    of their builder: TFDS then builds them anew.
    """

    name: str = ""
    num_documents: int = 0
    seed: int = 0
    mix: Any = None

    def __post_init__(self):
        sizes = f"{self.num_documents}_documents_seed_{self.seed}"
        self.name = f"{sizes}_{parameter_digest(self.mix)}"


class Written:
    """A part of a TextBuilder whose documents are those of `write`, a static method (rng, mix)."""

    write: Callable

    def _generate_examples(self):
        rng = np.random.default_rng(self.builder_config.seed)
        for index in range(self.builder_config.num_documents):
            yield index, {"text": self.write(rng, self.builder_config.mix)}


def written_corpus(builder: type, data_dir: str | Path, *, num_documents: int, seed: int, mix: Any):
    """Random access to documents of a Written builder, built under `data_dir` if they are not there.

    The same settings give the same documents, and a second call reads those of the first. See
    builders.build. Raises ValueError if num_documents is not positive.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents={num_documents} is no corpus; set it to at least 1.")
    config = WrittenConfig(num_documents=num_documents, seed=seed, mix=mix)
    return build(builder, config, data_dir)
