"""The corpus of long sums on disk, through TFDS as array_record."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.builders import TurnsBuilder, build, parameter_digest
from deepseek_jax.worlds.calculator import corpus


@dataclass
class CalculatorConfig(tfds.core.BuilderConfig):
    """Settings of one corpus. Its name contains them, so that other settings are another dataset.

    Whoever changes how documents are written raises CalculatorCorpus.VERSION: TFDS then builds them anew.
    """

    name: str = ""
    num_documents: int = 0
    seed: int = 0
    mix: corpus.CalculatorMix = corpus.CalculatorMix()

    def __post_init__(self):
        sizes = f"{self.num_documents}_documents_seed_{self.seed}"
        self.name = f"{sizes}_{parameter_digest(self.mix)}"


class CalculatorCorpus(TurnsBuilder):
    """Documents of corpus.write_document."""

    def _generate_examples(self):
        rng = np.random.default_rng(self.builder_config.seed)
        for index in range(self.builder_config.num_documents):
            yield index, {"text": corpus.write_document(rng, self.builder_config.mix)}


def calculator_corpus(data_dir: str | Path, *, num_documents: int, seed: int):
    """Random access to documents {"text": a sequence of bytes}, built under `data_dir` if they are not there.

    The same settings give the same documents, and a second call reads those of the first. See
    builders.build. Raises ValueError if num_documents is not positive.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents={num_documents} is no corpus; set it to at least 1.")
    config = CalculatorConfig(num_documents=num_documents, seed=seed)
    return build(CalculatorCorpus, config, data_dir)
