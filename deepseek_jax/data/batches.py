"""Packed batches: a source for the training loop, and the batches that a held-out loss is measured on."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.data.packing import Rows, pack, totals, whole_row
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.parallel import batch_sharding, put_batch
from deepseek_jax.parallel.processes import from_each, say, total_on
from deepseek_jax.parallel.shard import batch_share, own_rows
from deepseek_jax.training.schedule import number_at

TOTALS = ("normalizer", "num_tokens")


class Readers:
    """The readers that this process needs: those whose rows its devices hold.

    A batch is the rows of reader 0, then those of reader 1, ... So it depends on rows.readers and not on the
    processes. Where several of them hold rows of one reader, each runs it and takes its own rows.

    make(rows) -> the dataset of one reader, see data.packing; rows: those of all readers. iterators: reader
    -> its batches.
    """

    def __init__(self, make: Callable, rows: Rows, mesh: Mesh):
        self.rows, self.mesh = rows, mesh
        # The readers of one piece: in a batch of several pieces a process holds rows of the same readers
        needed = np.unique(own_rows(mesh, rows.batch_size) // self._rows_each(1)).tolist()
        self.iterators = {r: iter(make(dataclasses.replace(rows, reader=r))) for r in needed}

    def next(self, pieces: int = 1):
        """own() of the next `pieces` batches of every reader."""
        taken = {r: list(itertools.islice(it, pieces)) for r, it in self.iterators.items()}
        return self.own(taken)

    def own(self, taken):
        """This process's rows of a batch: a dict as of `pack`, whose totals count these rows alone.

        taken: reader -> its pieces of the batch, whose rows follow each other.
        """
        pieces = len(next(iter(taken.values())))
        each = self._rows_each(pieces)
        readers, places = np.divmod(own_rows(self.mesh, pieces * self.rows.batch_size), each)
        parts = []
        for reader, batches in taken.items():
            rows = places[readers == reader]
            parts.append(
                {n: _concatenated(batches, n)[rows] for n in batches[0] if n not in TOTALS}
            )
        batch = {name: _concatenated(parts, name) for name in parts[0]}
        return batch | totals(batch)

    def _rows_each(self, pieces):
        return pieces * self.rows.batch_size // self.rows.readers

    def get_state(self):
        """The positions of all readers, also of those that other processes run: a list, as JSON can hold."""
        own = [(reader, iterator.get_state()) for reader, iterator in self.iterators.items()]
        states = dict(pair for pairs in from_each(own) for pair in pairs)
        return [states[reader] for reader in range(self.rows.readers)]

    def set_state(self, states):
        """Resume from there, whatever the number of processes. Raises ValueError for other readers."""
        if len(states) != self.rows.readers:
            raise ValueError(
                f"readers={self.rows.readers}, and the checkpoint has the positions of {len(states)}; set "
                f"readers to {len(states)}, or give another --workdir"
            )
        for reader, iterator in self.iterators.items():
            iterator.set_state(states[reader])


def _concatenated(batches, name):
    return np.concatenate([batch[name] for batch in batches])


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

    Raises ValueError, naming the field, where the documents of a reader fill too few batches.
    """
    rows = Rows(batch_size=batch_size, sequence_length=sequence_length, readers=settings.readers)

    def make(rows):
        return pack(documents, tokenizer, rows, seed=seed, num_epochs=1)

    readers = Readers(make, rows, mesh)
    # Every row of a full batch has a segment; padding rows can stand in a reader's last batch only
    full = {
        reader: [batch for batch in batches if batch["segment_ids"][:, 0].all()]
        for reader, batches in readers.iterators.items()
    }
    # All processes raise or none does: one that continued alone would wait for the others
    fewest = min(from_each(min(map(len, full.values()))))
    if fewest < settings.eval_batches:
        raise ValueError(
            f"num_held_out={settings.num_held_out} documents of a source, each read once by one of "
            f"readers={settings.readers}, fill {fewest} batches of {batch_size} rows of {sequence_length} "
            f"tokens; hold out more of them, or lower eval_batches={settings.eval_batches}"
        )
    spaced = {reader: some[:: len(some) // settings.eval_batches] for reader, some in full.items()}
    taken = (
        {r: [some[number]] for r, some in spaced.items()} for number in range(settings.eval_batches)
    )
    return [put_batch(mesh, summed(mesh, readers.own(each))) for each in taken]


def _say_shared(readers):
    """Say where several processes read the same documents."""
    processes = jax.process_count()
    if processes > readers:
        say(
            f"readers={readers} for {processes} processes: about {processes // readers} of them tokenise the "
            f"same documents; up to {processes} readers share the work"
        )


class PackedDocuments:
    """The loop's source of language-modelling batches: Readers, whose positions are saved.

    make, rows: as for Readers. batch_sizes: pairs (first update, rows), the rows that each update takes,
    multiples of rows.batch_size. scalars: name -> function of the update count, whose value is added to the
    batch. evaluate(params) -> dict of floats, called every eval_every updates; None for never.
    """

    def __init__(
        self, make: Callable, rows: Rows, mesh: Mesh, *, batch_sizes, scalars, evaluate, eval_every
    ):
        _say_shared(rows.readers)
        self.readers, self.mesh = Readers(make, rows, mesh), mesh
        self.batch_sizes, self.scalars = batch_sizes, scalars
        self.evaluate, self.eval_every = evaluate, eval_every

    def next(self, state, step: int):
        """One batch on the mesh, and metrics: tokens, the number that it predicts (weighed, where tokens have
        weights), row_tokens, the number in its rows, and evaluate's floats.
        """
        metrics = {}
        if self.evaluate is not None and step % self.eval_every == 0:
            metrics = self.evaluate(state.model)
        pieces = number_at(self.batch_sizes, step) // self.readers.rows.batch_size
        batch = summed(self.mesh, self.readers.next(pieces))
        scalars = {name: np.float32(number(step)) for name, number in self.scalars.items()}
        metrics |= dict(tokens=batch["normalizer"], row_tokens=batch["num_tokens"])
        return [put_batch(self.mesh, batch | scalars)], metrics

    def get_state(self):
        """The position of each reader."""
        return {"readers": self.readers.get_state()}

    def set_state(self, state):
        """Resume from there. Raises ValueError if another number of readers saved the state."""
        # Checkpoints once listed the positions by process, each of which was one reader
        self.readers.set_state(state["readers"] if "readers" in state else state["processes"])


def abstract_rows(
    mesh: Mesh, rows: int, length: int, *, weighed: bool = False, features=(), scalars=()
):
    """A batch of packed rows as ShapeDtypeStructs, with the shardings that put_batch gives.

    weighed: with loss_weights, as conversations have. features: further ones, name -> array, of
    packing.whole_row. scalars: the names of further numbers.
    """
    segment = {"tokens": np.zeros(length, np.int32)} | dict(features)
    if weighed:
        segment["weights"] = np.ones(length, np.float32)
    row = whole_row(segment) | dict.fromkeys(scalars, np.float32(0))
    return abstract_batch(mesh, row, rows)


def abstract_batch(mesh: Mesh, batch: dict, times: int = 1):
    """A batch of arrays as ShapeDtypeStructs, with the shardings that put_batch gives, and `times` as many
    rows.
    """
    by_rows, everywhere = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def placed(x):
        shape = (times * x.shape[0], *x.shape[1:]) if x.shape else ()
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=by_rows if shape else everywhere)

    return {name: placed(array) for name, array in batch.items()}


def summed(mesh: Mesh, batch):
    """A batch of Readers with normalizer and num_tokens summed over all processes, where there are several as
    jax arrays, for which no process waits.
    """
    if jax.process_count() == 1:
        return batch
    _, shares = batch_share(mesh)
    # So many processes hold the same rows (batch_share): a sum over processes counts each row that often
    copies = jax.process_count() // shares
    totals_on = total_on(mesh, np.array([batch[name] for name in TOTALS], np.float32)) / copies
    return batch | dict(zip(TOTALS, totals_on, strict=True))
