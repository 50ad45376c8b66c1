"""The corpus of games on disk."""

from functools import partial

from deepseek_jax.data.builders import TurnsBuilder
from deepseek_jax.worlds.guess import corpus
from deepseek_jax.worlds.written import Written, written_corpus


class GuessCorpus(Written, TurnsBuilder):
    """Documents of corpus.write_document."""

    write = staticmethod(corpus.write_document)


guess_corpus = partial(written_corpus, GuessCorpus, mix=corpus.GuessMix())
