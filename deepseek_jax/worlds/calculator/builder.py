"""The corpus of long sums on disk."""

from functools import partial

from deepseek_jax.data.builders import TurnsBuilder
from deepseek_jax.worlds.calculator import corpus
from deepseek_jax.worlds.written import Written, written_corpus


class CalculatorCorpus(Written, TurnsBuilder):
    """Documents of corpus.write_document."""

    write = staticmethod(corpus.write_document)


calculator_corpus = partial(written_corpus, CalculatorCorpus, mix=corpus.CalculatorMix())
