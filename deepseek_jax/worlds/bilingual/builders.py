"""The bilingual world on disk, through TFDS as array_record: its corpus, and its examples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.builders import (
    QuietBuilder,
    TextBuilder,
    build,
    parameter_digest,
    prepared,
)
from deepseek_jax.data.stored import stored_records
from deepseek_jax.data.tasks import Task
from deepseek_jax.worlds.bilingual import corpus as bilingual_corpus
from deepseek_jax.worlds.bilingual import preferences as bilingual_preferences
from deepseek_jax.worlds.bilingual import tasks as bilingual_tasks

# The version of both datasets, the corpus and the examples
VERSION = tfds.core.Version("1.0.1")
# Distinct requests in the preferences of a split
NUM_JUDGED = 512
# Kind of example -> the names of its text fields, and of its numbers
FIELDS = {
    "puzzles": ("question answer language kind problem solution", ""),
    "requests": ("question answer language kind problem key solution", ""),
    "preferences": (
        "question language kind chosen rejected",
        "chosen_helpfulness rejected_helpfulness",
    ),
    "safety": ("question language kind completion", "safe"),
}


def bilingual_documents(
    data_dir: str | Path,
    *,
    num_documents: int,
    seed: int,
    mix: bilingual_corpus.CorpusMix | None = None,
):
    """Random access to documents {"text": bytes}, built under `data_dir` if they are not there.

    mix: bilingual_corpus.CorpusMix, None for the default one. See builders.build.
    Raises ValueError if num_documents is not positive.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents={num_documents} is no corpus; set it to at least 1.")
    mix = bilingual_corpus.CorpusMix() if mix is None else mix
    config = BilingualConfig(what="corpus", num_train=num_documents, seed=seed, mix=mix)
    return build(BilingualCorpus, config, data_dir)


def bilingual_examples(
    what: str, data_dir: str | Path, *, num_train: int, num_held_out: int, seed: int
):
    """A Task of "puzzles", "requests", "preferences" or "safety", built under `data_dir` like the corpus.

    Its examples are dicts of str and float: those of bilingual_tasks, and of
    bilingual_preferences.PreferenceWriter, whose held-out ones are about held-out requests.
    Raises ValueError for another kind, and for more puzzles or requests than there are.
    """
    if what not in FIELDS:
        raise ValueError(f"there are no bilingual {what!r}; choose from {', '.join(FIELDS)}.")
    config = BilingualConfig(what=what, num_train=num_train, num_held_out=num_held_out, seed=seed)
    builder = prepared(BilingualExamples, config, data_dir)
    return Task(*(_examples(builder, split) for split in ("train", "held_out")))


@dataclass
class BilingualConfig(tfds.core.BuilderConfig):
    """Settings of one dataset. Its name contains them, so that other settings are another dataset.

    Whoever changes how this world is written raises VERSION: TFDS then builds the datasets anew.
    """

    name: str = ""
    what: str = ""
    num_train: int = 0
    num_held_out: int = 0
    seed: int = 0
    mix: bilingual_corpus.CorpusMix | None = None

    def __post_init__(self):
        sizes = f"{self.num_train}_{self.num_held_out}"
        self.name = f"{self.what}_{sizes}_seed_{self.seed}_{parameter_digest(self.mix)}"


class BilingualCorpus(TextBuilder):
    """Documents of bilingual_corpus.CorpusWriter."""

    VERSION = VERSION

    def _generate_examples(self):
        config = self.builder_config
        rng, writer = np.random.default_rng(config.seed), bilingual_corpus.CorpusWriter(config.mix)
        for index in range(config.num_train):
            yield index, {"text": writer.write(rng)}


class BilingualExamples(QuietBuilder, skip_registration=True):
    """Examples of one of FIELDS, in splits "train" and "held_out", in TFDS's own order."""

    VERSION = VERSION

    def _info(self):
        texts, numbers = map(str.split, FIELDS[self.builder_config.what])
        features = {name: tfds.features.Text() for name in texts}
        features |= {name: tfds.features.Scalar(np.float32) for name in numbers}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        config = self.builder_config
        return {
            "train": self._generate_examples(config.num_train, held_out=False),
            "held_out": self._generate_examples(config.num_held_out, held_out=True),
        }

    def _generate_examples(self, n, *, held_out):
        yield from enumerate(self._write(n, held_out))

    def _write(self, n, held_out):
        what, seed = self.builder_config.what, self.builder_config.seed
        if what == "puzzles":
            return bilingual_tasks.puzzle_examples(seed, n, held_out=held_out)
        if what == "requests":
            return bilingual_tasks.request_examples(seed, n, held_out=held_out)
        requests = bilingual_tasks.request_examples(seed, NUM_JUDGED, held_out=held_out)
        writer = bilingual_preferences.PreferenceWriter(requests)
        return writer.pairs(seed, n) if what == "preferences" else writer.safety(seed, n)


def _examples(builder, split):
    source = stored_records(builder, split)
    return [
        {k: v.decode() if isinstance(v, bytes) else float(v) for k, v in record.items()}
        for record in (source[i] for i in range(len(source)))
    ]
