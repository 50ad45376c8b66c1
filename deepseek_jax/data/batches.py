"""Packed batches: a source for the training loop, and the batches that a held-out loss is measured on."""

import itertools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.parallel import batch_sharding, put_batch
from deepseek_jax.parallel.processes import from_each, total
from deepseek_jax.parallel.shard import batch_share
from deepseek_jax.training.schedule import number_at

TOTALS = ("normalizer", "num_tokens")


def share_of_rows(mesh: Mesh, **fields):
    """data.packing.Rows of this process: its share of the documents and of the rows."""
    index, count = batch_share(mesh)
    return Rows(**fields, process_index=index, process_count=count)


def held_out_batches(
    documents,
    tokenizer: Tokenizer,
    mesh: Mesh,
    settings,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
):
    """settings.eval_batches batches on the mesh; each held-out document is read at most once.

    The batches are evenly spaced in all that the documents fill: neighbours may hold parts of one long
    document, and an interval over batches needs independent ones. settings: CorpusSettings.

    Raises ValueError, naming the field, where the documents of a process fill too few batches.
    """
    rows = share_of_rows(mesh, batch_size=batch_size, sequence_length=sequence_length)
    batches = pack(documents, tokenizer, rows, num_epochs=1, seed=seed)
    # Every row of a full batch has a segment; padding rows can stand in a process's last batch only
    full = [batch for batch in batches if batch["segment_ids"][:, 0].all()]
    # All processes raise or none does: one that continued alone would wait for the others
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
    """The loop's source of language-modelling batches: a Grain iterator whose position is saved.

    dataset: from data.packing.pack, in batches of quantum rows. batch_sizes: pairs (first update, rows), the
    rows that each update takes. scalars: name -> function of the update count, whose value is added to the
    batch. evaluate(params) -> dict of floats, called every eval_every updates; None for never.
    """

    def __init__(
        self, dataset, mesh: Mesh, *, batch_sizes, quantum: int, scalars, evaluate, eval_every: int
    ):
        self.iterator, self.mesh = iter(dataset), mesh
        self.batch_sizes, self.quantum, self.scalars = batch_sizes, quantum, scalars
        self.evaluate, self.eval_every = evaluate, eval_every

    def next(self, state, step: int):
        """One batch on the mesh, and metrics: tokens, the number that it predicts (weighed, where tokens have
        weights), row_tokens, the number in its rows, and evaluate's floats.
        """
        metrics = {}
        if self.evaluate is not None and step % self.eval_every == 0:
            metrics = self.evaluate(state.model)
        pieces = number_at(self.batch_sizes, step) // self.quantum
        batch = joined(self.mesh, list(itertools.islice(self.iterator, pieces)))
        scalars = {name: np.float32(number(step)) for name, number in self.scalars.items()}
        counts = dict(tokens=batch["normalizer"], row_tokens=batch["num_tokens"])
        metrics |= {name: float(count) for name, count in counts.items()}
        return [put_batch(self.mesh, batch | scalars)], metrics

    def get_state(self):
        """The position of each process's iterator."""
        return {"processes": from_each(self.iterator.get_state())}

    def set_state(self, state):
        """Resume from there. Raises ValueError if another number of processes saved the state."""
        places = state["processes"]
        if len(places) != jax.process_count():
            raise ValueError(
                f"the base was pre-trained by {len(places)} processes, and now there are "
                f"{jax.process_count()}; start as many as before, or give another --workdir"
            )
        self.iterator.set_state(places[jax.process_index()])


def abstract_rows(mesh: Mesh, rows: int, length: int, *, weighed: bool = False, scalars=TOTALS):
    """A batch of packed rows as ShapeDtypeStructs, with the shardings that put_batch gives.

    weighed: with loss_weights, as conversations have. scalars: the names of its numbers.
    """
    dtypes = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), np.int32)
    dtypes |= {"loss_mask": np.bool_} | ({"loss_weights": np.float32} if weighed else {})
    shapes = {name: ((rows, length), dtype) for name, dtype in dtypes.items()}
    return abstract_batch(mesh, shapes | {name: ((), np.float32) for name in scalars})


def abstract_batch(mesh: Mesh, shapes: dict):
    """A batch as ShapeDtypeStructs, from {name: (shape, dtype)}, with the shardings that put_batch gives."""
    by_rows, everywhere = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=by_rows if shape else everywhere)
        for name, (shape, dtype) in shapes.items()
    }


def joined(mesh: Mesh, pieces):
    """Batches of `pack`, their rows concatenated; normalizer and num_tokens are summed over all processes."""
    _, shares = batch_share(mesh)
    # So many processes hold the same rows (batch_share): a sum over processes counts each row that often
    copies = jax.process_count() // shares
    batch = {
        name: sum(p[name] for p in pieces)
        if name in TOTALS
        else np.concatenate([p[name] for p in pieces])
        for name in pieces[0]
    }
    return batch | {name: total(batch[name]) / np.float32(copies) for name in TOTALS}
