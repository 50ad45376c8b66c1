"""The documents of a pre-training run: a mixture to train on, and a held-out mixture."""

from pathlib import Path

from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.records import content_digest
from deepseek_jax.data.sources import file_documents, hold_out, python_documents, tfds_documents
from deepseek_jax.data.stored import is_stored
from deepseek_jax.errors import at
from deepseek_jax.recipes.pretrain.settings import CorpusSettings
from deepseek_jax.worlds.registry import corpus_names, find_corpus


def open_corpus(settings: CorpusSettings, data_dir: Path, seed: int) -> tuple[Mixture, Mixture]:
    """Open the documents of settings.sources.

    Args:
        settings: The block config.data.
        data_dir: The folder for the datasets that are built from files.
        seed: The seed of a small world's documents.

    Returns:
        (documents to train on, held-out documents).

    Raises:
        ValueError: A source gives some reader no document of its own to train on, or no held-out
            one; the message names the field. Also if there are no sources.
    """
    readers = settings.readers
    if settings.num_held_out < readers:
        raise ValueError(
            f"data.num_held_out={settings.num_held_out} documents of a source are too few for data.readers="
            f"{readers} that each read their own; set it to at least {readers}, or lower data.readers"
        )
    weights = settings.weights or (1.0,) * len(settings.sources)
    if not settings.sources:
        raise ValueError(
            "data.sources=() names no documents; give a path or a small world's corpus"
        )
    with at("data.sources", "path"):
        sources = [_open(name, settings, data_dir, seed) for name in settings.sources]
    with at("data"):
        train, held_out = zip(*(hold_out(s, settings.num_held_out) for s in sources), strict=True)
    for name, source in zip(settings.sources, train, strict=True):
        if len(source) < readers:
            raise ValueError(
                f"data.sources has {name!r}, which leaves {len(source)} documents to train on, too few for "
                f"data.readers={readers} that each read their own; give a larger source, or lower readers"
            )
    with at("data"):
        return Mixture(train, weights), Mixture(held_out, weights)


def digest_of_sources(settings: CorpusSettings) -> dict[str, str]:
    """Return {name: a digest of its content} of the sources that are files."""
    file_names = (
        name for name in settings.sources if name != "python" and name not in corpus_names()
    )
    with at("config"), at("data.sources", "path"):
        return {name: content_digest(name, settings.split) for name in file_names}


def _open(name: str, settings: CorpusSettings, data_dir: Path, seed: int):
    if name == "python":
        return python_documents(data_dir)
    if name in corpus_names():
        _, documents = find_corpus(name)
        return documents(num_documents=settings.num_documents, seed=seed)
    if is_stored(name) and not settings.columns:
        return tfds_documents(name, settings.split)
    return file_documents(name, data_dir, settings.split, settings.columns)
