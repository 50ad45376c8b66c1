"""Packed batches: a source for the training loop, and batches to measure a held-out loss on."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.data.packing import Rows, pack, totals, whole_row
from deepseek_jax.data.stored import RandomAccess
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.parallel.processes import from_each, say, total_on
from deepseek_jax.parallel.shard import batch_sharding, batch_share, own_rows, put_batch
from deepseek_jax.training.schedule import number_at
from deepseek_jax.training.state import TrainState
from deepseek_jax.trees import PyTree

TOTALS = ("normalizer", "num_tokens")


class Readers:
    """The readers that this process needs: the ones with rows on its devices.

    A batch is the rows of reader 0, then the rows of reader 1, and so on. So it depends on
    rows.readers and not on the number of processes. If several processes hold rows of one reader,
    each of them runs this reader and takes its part of the rows.

    Args:
        make: make(rows) returns the dataset of one reader, see data.packing.
        rows: The rows of all readers.
        mesh: The mesh that the batch is for.

    Attributes:
        iterators: Reader -> the iterator over its batches.
    """

    def __init__(self, make: Callable[[Rows], grain.IterDataset], rows: Rows, mesh: Mesh):
        self.rows, self.mesh = rows, mesh
        # One piece is enough to find them: with several pieces a process holds rows of the same readers
        own_readers = np.unique(own_rows(mesh, rows.batch_size) // self._rows_each(1)).tolist()
        self.iterators = {r: iter(make(dataclasses.replace(rows, reader=r))) for r in own_readers}

    def next(self, pieces: int = 1):
        """Return rows_of_process of the next `pieces` batches of every reader."""
        pieces_by_reader = {
            r: list(itertools.islice(iterator, pieces)) for r, iterator in self.iterators.items()
        }
        return self.rows_of_process(pieces_by_reader)

    def rows_of_process(self, pieces_by_reader):
        """Return this process's rows of a batch, as a dict like a batch of `pack`.

        Its totals count only these rows.

        Args:
            pieces_by_reader: Reader -> its pieces of the batch, in order; their rows follow each
                other.
        """
        pieces = len(next(iter(pieces_by_reader.values())))
        rows_per_reader = self._rows_each(pieces)
        readers, places = np.divmod(
            own_rows(self.mesh, pieces * self.rows.batch_size), rows_per_reader
        )
        reader_rows = []
        for reader, batches in pieces_by_reader.items():
            rows = places[readers == reader]
            reader_rows.append(
                {n: _concatenated(batches, n)[rows] for n in batches[0] if n not in TOTALS}
            )
        batch = {name: _concatenated(reader_rows, name) for name in reader_rows[0]}
        return batch | totals(batch)

    def _rows_each(self, pieces):
        return pieces * self.rows.batch_size // self.rows.readers

    def get_state(self):
        """Return the positions of all readers, as a list that JSON can hold.

        It includes the readers that other processes run.
        """
        own_states = [(reader, iterator.get_state()) for reader, iterator in self.iterators.items()]
        states = dict(pair for pairs in from_each(own_states) for pair in pairs)
        return [states[reader] for reader in range(self.rows.readers)]

    def set_state(self, states):
        """Resume from positions of `get_state`, with any number of processes.

        Raises:
            ValueError: The positions are of another number of readers.
        """
        if len(states) != self.rows.readers:
            raise ValueError(
                f"readers={self.rows.readers}, and the checkpoint has the positions of {len(states)}; set "
                f"readers to {len(states)}, or give another --workdir"
            )
        for reader, iterator in self.iterators.items():
            iterator.set_state(states[reader])


def _concatenated(batches, name):
    return np.concatenate([batch[name] for batch in batches])


class HeldOutSettings(Protocol):
    """Settings of held-out batches: the readers, and what they read."""

    @property
    def readers(self) -> int:
        """Readers that work side by side."""

    @property
    def num_held_out(self) -> int:
        """Documents of each source in the held-out set."""

    @property
    def eval_batches(self) -> int:
        """Batches of the held-out loss."""


def held_out_batches(
    documents: RandomAccess,
    tokenizer: Tokenizer,
    mesh: Mesh,
    settings: HeldOutSettings,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
) -> list[dict[str, jax.Array]]:
    """Return settings.eval_batches batches on the mesh, for a held-out loss.

    Each held-out document is read at most once. The batches are evenly spaced in all batches that
    the documents fill: neighbours may contain parts of one long document, and an interval over
    batches needs independent ones.

    Args:
        documents: The held-out documents, as a source of `packing.pack`.
        tokenizer: The tokenizer of the documents.
        mesh: The mesh for the batches.
        settings: A CorpusSettings (recipes.pretrain.settings).
        batch_size: Rows of a batch.
        sequence_length: Tokens in a row.
        seed: Seed of the order of the documents.

    Raises:
        ValueError: The documents of a reader fill too few batches; the message names the field.
    """
    rows = Rows(batch_size=batch_size, sequence_length=sequence_length, readers=settings.readers)

    def make(rows):
        return pack(documents, tokenizer, rows, seed=seed, num_epochs=1)

    readers = Readers(make, rows, mesh)
    # Every row of a full batch has a segment; only the last batch of a reader can have rows of padding
    full_batches = {
        reader: [batch for batch in batches if batch["segment_ids"][:, 0].all()]
        for reader, batches in readers.iterators.items()
    }
    # All processes raise or none does: a process that continued would wait for the others for ever
    fewest_batches = min(from_each(min(map(len, full_batches.values()))))
    if fewest_batches < settings.eval_batches:
        raise ValueError(
            f"num_held_out={settings.num_held_out} documents of a source, each read once by one of "
            f"readers={settings.readers}, fill {fewest_batches} batches of {batch_size} rows of "
            f"{sequence_length} tokens; hold out more of them, or lower eval_batches={settings.eval_batches}"
        )
    spaced_batches = {
        reader: reader_batches[:: len(reader_batches) // settings.eval_batches]
        for reader, reader_batches in full_batches.items()
    }
    eval_pieces = (
        {r: [reader_batches[number]] for r, reader_batches in spaced_batches.items()}
        for number in range(settings.eval_batches)
    )
    return [
        put_batch(mesh, summed(mesh, readers.rows_of_process(pieces_by_reader)))
        for pieces_by_reader in eval_pieces
    ]


def _say_shared(readers):
    """Print a message if several processes read the same documents."""
    processes = jax.process_count()
    if processes > readers:
        say(
            f"readers={readers} for {processes} processes: about {processes // readers} of them tokenise the "
            f"same documents; up to {processes} readers share the work"
        )


class PackedDocuments:
    """The training loop's source of language-modelling batches: Readers with saved positions.

    Args:
        make, rows: See `Readers`.
        mesh: The mesh that the batches are put on.
        batch_sizes: Rows of a batch, a multiple of rows.batch_size; or pairs (first update, rows):
            the rows from that update on.
        scalars: Name -> function of the update count; its value is added to the batch.
        evaluate: evaluate(params) returns a dict of floats, which are added to the metrics. None
            for no evaluation.
        eval_every: Updates between two calls of evaluate.
    """

    def __init__(
        self,
        make: Callable[[Rows], grain.IterDataset],
        rows: Rows,
        mesh: Mesh,
        *,
        batch_sizes: int | Sequence[tuple[int, int]],
        scalars: Mapping[str, Callable[[int], float | jax.Array]],
        evaluate: Callable[[PyTree], dict[str, float]] | None,
        eval_every: int,
    ):
        _say_shared(rows.readers)
        self.readers, self.mesh = Readers(make, rows, mesh), mesh
        self.batch_sizes, self.scalars = batch_sizes, scalars
        self.evaluate, self.eval_every = evaluate, eval_every

    def next(self, state: TrainState, step: int) -> tuple[list[dict], dict]:
        """Return ([batch on the mesh], metrics) for an update.

        The metrics are tokens, the number of tokens that the batch predicts (their weights summed,
        if tokens have weights); row_tokens, the number of tokens in its rows; and the floats of
        evaluate.
        """
        metrics: dict = {}
        if self.evaluate is not None and step % self.eval_every == 0:
            metrics = self.evaluate(state.model)
        pieces = number_at(self.batch_sizes, step) // self.readers.rows.batch_size
        batch = summed(self.mesh, self.readers.next(pieces))
        scalars = {name: np.float32(number(step)) for name, number in self.scalars.items()}
        metrics |= dict(tokens=batch["normalizer"], row_tokens=batch["num_tokens"])
        return [put_batch(self.mesh, batch | scalars)], metrics

    def get_state(self) -> dict[str, list]:
        """Return the position of each reader, as JSON can hold it."""
        return {"readers": self.readers.get_state()}

    def set_state(self, state: dict[str, list]):
        """Resume from a state of `get_state`.

        Raises:
            ValueError: Another number of readers saved the state.
        """
        # Older checkpoints list the positions under "processes", when each process was one reader
        self.readers.set_state(state["readers"] if "readers" in state else state["processes"])


def abstract_rows(
    mesh: Mesh,
    rows: int,
    length: int,
    *,
    weighed: bool = False,
    features: Mapping[str, np.ndarray] = {},
    scalars: Iterable[str] = (),
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return a batch of packed rows as ShapeDtypeStructs, with the shardings of put_batch.

    Args:
        mesh: The mesh that the batch would be on.
        rows: Rows of the batch.
        length: Tokens in a row.
        weighed: Include loss_weights, which conversations have.
        features: Further arrays of a segment, name -> array, see `packing.whole_row`.
        scalars: Names of further numbers in the batch.
    """
    segment = {"tokens": np.zeros(length, np.int32)} | dict(features)
    if weighed:
        segment["weights"] = np.ones(length, np.float32)
    row = whole_row(segment) | dict.fromkeys(scalars, np.float32(0))
    return abstract_batch(mesh, row, rows)


def abstract_batch(
    mesh: Mesh, batch: Mapping[str, np.ndarray | np.generic], times: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return a batch as ShapeDtypeStructs, with the shardings of put_batch.

    Args:
        mesh: The mesh that the batch would be on.
        batch: Name -> array.
        times: The result has this many times the rows of `batch`.
    """
    row_sharding, replicated_sharding = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def abstract_array(x):
        shape = (times * x.shape[0], *x.shape[1:]) if x.shape else ()
        return jax.ShapeDtypeStruct(
            shape, x.dtype, sharding=row_sharding if shape else replicated_sharding
        )

    return {name: abstract_array(array) for name, array in batch.items()}


def summed(mesh: Mesh, batch):
    """Return a batch of Readers with normalizer and num_tokens summed over all processes.

    With several processes the sums are jax arrays, which no process waits for.
    """
    if jax.process_count() == 1:
        return batch
    _, num_shares = batch_share(mesh)
    # `copies` processes hold the same rows (batch_share), so a sum over processes counts each row that often
    copies = jax.process_count() // num_shares
    global_totals = total_on(mesh, np.array([batch[name] for name in TOTALS], np.float32)) / copies
    return batch | dict(zip(TOTALS, global_totals, strict=True))
