"""The documents of a pre-training run, and the loop's source of packed batches."""

import itertools
from functools import partial
from pathlib import Path

import jax
import numpy as np

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.packing import pack
from deepseek_jax.data.sources import (
    arithmetic_corpus,
    hold_out,
    jsonl_documents,
    python_documents,
    tfds_documents,
)
from deepseek_jax.data.tokenizer import (
    arithmetic_tokenizer,
    deepseek_tokenizer,
    load_tokenizer,
)
from deepseek_jax.errors import at
from deepseek_jax.parallel import put_batch
from deepseek_jax.parallel.processes import from_each, total
from deepseek_jax.parallel.shard import batch_share
from deepseek_jax.training.schedule import stage_at
from deepseek_jax.worlds.bilingual.builders import bilingual_documents
from deepseek_jax.worlds.bilingual.corpus import TEACHING
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer, letters_tokenizer

TOKENIZERS = {
    "bytes": byte_tokenizer,
    "deepseek": deepseek_tokenizer,
    "letters": letters_tokenizer,
}
# config.base.corpus -> the documents of a small world, and the tokenizer whose pieces they are made of
SMALL_WORLDS = {
    "arithmetic": (arithmetic_corpus, arithmetic_tokenizer),
    "bilingual": (bilingual_documents, bilingual_tokenizer),
    "bilingual_teaching": (partial(bilingual_documents, mix=TEACHING), bilingual_tokenizer),
}
TOTALS = ("normalizer", "num_tokens")


def corpus_tokenizer(name):
    """The tokenizer of config.data.tokenizer."""
    return TOKENIZERS[name]() if name in TOKENIZERS else load_tokenizer(name)


def base_tokenizer(base):
    """The tokenizer of a base made on the spot. base: BaseSettings."""
    return SMALL_WORLDS[base.corpus][1]()


def base_documents(base, data_dir, seed):
    """Random access to the documents of BaseSettings' corpus, built under data_dir."""
    documents, _ = SMALL_WORLDS[base.corpus]
    return documents(data_dir, num_documents=base.num_documents, seed=seed)


def open_corpus(settings, data_dir, seed, mesh):
    """Read CorpusSettings' sources: -> (Mixture to train on, Mixture of held-out documents).

    Raises ValueError, naming the field, where a source has less than a document on either side for each
    process of the mesh that reads its own.
    """
    _, shares = batch_share(mesh)
    if settings.num_held_out < shares:
        raise ValueError(
            f"config.data.num_held_out={settings.num_held_out} documents of a source are too few for "
            f"{shares} processes that each read their own; set it to at least {shares}"
        )
    weights = settings.weights or (1.0,) * len(settings.sources)
    with at("config.data.sources", "path"):
        sources = [_open(name, settings, data_dir, seed) for name in settings.sources]
    with at("config.data"):
        train, held_out = zip(*(hold_out(s, settings.num_held_out) for s in sources), strict=True)
    for name, source in zip(settings.sources, train, strict=True):
        if len(source) < shares:
            raise ValueError(
                f"{name!r} of config.data.sources leaves {len(source)} documents to train on, too few for "
                f"{shares} processes that each read their own; give a larger source"
            )
    return Mixture(train, weights), Mixture(held_out, weights)


def _open(name, settings, data_dir, seed):
    if name == "arithmetic":
        return arithmetic_corpus(data_dir, num_documents=settings.num_documents, seed=seed)
    if name == "python":
        return python_documents(data_dir)
    return (
        jsonl_documents(name, data_dir) if Path(name).suffix == ".jsonl" else tfds_documents(name)
    )


def packed(documents, tokenizer, mesh, **options):
    """data.packing.pack of this process's share of the documents and rows."""
    index, count = batch_share(mesh)
    return pack(documents, tokenizer, process_index=index, process_count=count, **options)


def held_out_batches(documents, tokenizer, mesh, settings, *, batch_size, sequence_length, seed):
    """settings.eval_batches batches on the mesh, of documents that are read once at most, and as far apart as
    they allow, so that what is measured on one knows little of another. settings: CorpusSettings.

    Raises ValueError, naming the field, where the documents of some process do not fill them.
    """
    sizes = dict(batch_size=batch_size, sequence_length=sequence_length)
    batches = packed(documents, tokenizer, mesh, num_epochs=1, seed=seed, **sizes)
    full = [batch for batch in batches if batch["segment_ids"][:, 0].all()]  # but perhaps the last
    fewest = min(from_each(len(full)))
    if fewest < settings.eval_batches:
        raise ValueError(
            f"config.data.num_held_out={settings.num_held_out} documents of a source, each read once, fill "
            f"{fewest} batches of {batch_size} rows of {sequence_length} tokens; hold out more of them, or "
            f"lower config.data.eval_batches={settings.eval_batches}"
        )
    taken = full[:: len(full) // settings.eval_batches][: settings.eval_batches]
    return [put_batch(mesh, joined(mesh, [batch])) for batch in taken]


class PackedDocuments:
    """The loop's source of language-modelling batches: a Grain iterator whose place is saved.

    dataset: `packed`, in batches of quantum rows, of which each update takes what batch_sizes say: pairs
    (first update, rows). scalars: name -> function of the update count, to go along with each batch.
    evaluate(params) -> dict of floats, asked every eval_every updates; None for never.
    """

    def __init__(self, dataset, mesh, *, batch_sizes, quantum, scalars, evaluate, eval_every):
        self.iterator, self.mesh = iter(dataset), mesh
        self.batch_sizes, self.quantum, self.scalars = batch_sizes, quantum, scalars
        self.evaluate, self.eval_every = evaluate, eval_every

    def next(self, state, step):
        """One batch on the mesh, and how many tokens it predicts."""
        metrics = {}
        if self.evaluate is not None and step % self.eval_every == 0:
            metrics = self.evaluate(state.params)
        pieces = stage_at(self.batch_sizes, step) // self.quantum
        batch = joined(self.mesh, list(itertools.islice(self.iterator, pieces)))
        scalars = {name: np.float32(number(step)) for name, number in self.scalars.items()}
        metrics |= {"tokens": float(batch["normalizer"])}
        return [put_batch(self.mesh, batch | scalars)], metrics

    def get_state(self):
        """Where the iterator of each process stands."""
        return {"processes": from_each(self.iterator.get_state())}

    def set_state(self, state):
        """Go on from there. Raises ValueError for the state of another number of processes."""
        places = state["processes"]
        if len(places) != jax.process_count():
            raise ValueError(
                f"the base was being pre-trained by {len(places)} processes, and now there are "
                f"{jax.process_count()}; start as many as before, or give another --workdir"
            )
        self.iterator.set_state(places[jax.process_index()])


def joined(mesh, pieces):
    """Batches of `pack`, one under the other, with the totals of all processes."""
    _, shares = batch_share(mesh)
    copies = jax.process_count() // shares  # processes that give the same rows
    batch = {
        name: sum(p[name] for p in pieces)
        if name in TOTALS
        else np.concatenate([p[name] for p in pieces])
        for name in pieces[0]
    }
    return batch | {name: total(batch[name]) / np.float32(copies) for name in TOTALS}
