"""The corpus of sums on disk."""

from functools import partial

from deepseek_jax.data.builders import TextBuilder
from deepseek_jax.worlds.arithmetic import corpus
from deepseek_jax.worlds.written import Written, written_corpus


class ArithmeticCorpus(Written, TextBuilder):
    """Documents of corpus.write_document."""

    write = staticmethod(corpus.write_document)


arithmetic_corpus = partial(written_corpus, ArithmeticCorpus, mix=corpus.CorpusMix())
