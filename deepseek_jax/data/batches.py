"""The loop's source of packed batches, and those that a held-out loss is measured on."""

import itertools

import jax
import numpy as np

from deepseek_jax.data.packing import pack
from deepseek_jax.parallel import put_batch
from deepseek_jax.parallel.processes import from_each, total
from deepseek_jax.parallel.shard import batch_share
from deepseek_jax.training.schedule import number_at

TOTALS = ("normalizer", "num_tokens")


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
            f"num_held_out={settings.num_held_out} documents of a source, each read once, fill {fewest} "
            f"batches of {batch_size} rows of {sequence_length} tokens; hold out more of them, or lower "
            f"eval_batches={settings.eval_batches}"
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
        pieces = number_at(self.batch_sizes, step) // self.quantum
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
