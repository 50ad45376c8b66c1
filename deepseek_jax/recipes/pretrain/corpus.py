"""The documents of a stage of pre-training, and those of a base: a world's."""

import dataclasses
from pathlib import Path

from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.worlds.registry import find_corpus


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents to train on, and how they are read and packed. documents: a source of data.sources, or a
    Mixture. packing, fim_rate, readers: see data.packing.
    """

    documents: object
    tokenizer: Tokenizer
    packing: bool = True
    fim_rate: float = 0.0
    readers: int = 1


def base_corpus(settings: BaseSettings, tokenizer: Tokenizer, folder: Path, seed: int):
    """The Corpus of a base, a world's, which is built in the folder data beside that of its checkpoints."""
    _, documents = find_corpus(settings.corpus)
    found = documents(folder.parent / "data", num_documents=settings.num_documents, seed=seed)
    return Corpus(found, tokenizer)
