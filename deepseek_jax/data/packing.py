"""Documents to rows of fixed length, several to a row, told apart by segment_ids."""

from functools import partial

import grain
import numpy as np

BLOCK = 64  # documents read at once: one by one, reading costs more than all the rest
PACKING_BINS = 128  # rows filled side by side: more of them leave less padding
BATCHES_AHEAD = 8  # made by a thread while the accelerator works


def pack(
    source,
    tokenizer,
    *,
    sequence_length,
    batch_size,
    seed,
    num_epochs=None,
    process_index=0,
    process_count=1,
):
    """Language-modelling batches of documents, shuffled by `seed`, as a grain.IterDataset.

    source: random access to {"text": str or UTF-8 bytes}, as sources.arithmetic_corpus() or a
    list. Each document ends in eos and is one segment. One longer than a row becomes several,
    each starting with the last token of the one before, so that every token but a document's
    first is predicted once an epoch. num_epochs: None repeats for ever, in another order each
    time; a finite run fills its last batch with padding. The iterators resume exactly by
    get_state(), which is JSON, and set_state(); close() ends the thread that reads ahead.
    batch_size counts the rows of all processes: each packs every process_count-th document into its
    share of the rows, and the normalizer is its own.

    Batches are numpy: tokens, targets, segment_ids, positions int32[b t], loss_mask bool[b t],
    and normalizer float32[], the number of True in loss_mask. Segments count from 1, positions
    from 0; padding is segment 0. loss_mask is False where the next token is another document's.
    Raises ValueError for a source with less than a document a process, a row without room for a target,
    and rows that do not split over the processes.
    """
    if len(source) < process_count:
        raise ValueError(
            f"there are no documents for some of {process_count} processes; the source has "
            f"{len(source)}, and each needs one."
        )
    if sequence_length < 2 or batch_size < 1:
        raise ValueError(
            f"sequence_length={sequence_length} and batch_size={batch_size} leave nothing to "
            "predict; set sequence_length to at least 2 and batch_size to at least 1."
        )
    if batch_size % process_count:
        raise ValueError(
            f"config.base.batch_size={batch_size} does not split over {process_count} processes; "
            f"set it to a multiple of {process_count}."
        )
    batch_size //= process_count
    documents = grain.MapDataset.range(process_index, len(source), process_count)
    blocks = documents.shuffle(seed).repeat(num_epochs).batch(BLOCK)
    blocks = blocks.map(partial(_read, source=source, tokenizer=tokenizer))
    in_this_thread = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    segments = grain.experimental.FlatMapIterDataset(
        blocks.to_iter_dataset(in_this_thread), _Split(sequence_length)
    )
    rows = grain.experimental.FirstFitPackIterDataset(
        segments,
        length_struct={"tokens": sequence_length},
        num_packing_bins=PACKING_BINS,
        seed=seed,
    )
    pad_rows = partial(grain.experimental.batch_and_pad, batch_size=batch_size)
    batches = rows.batch(batch_size, batch_fn=pad_rows)
    batches = batches.map(partial(_finish, pad_id=tokenizer.pad_id))
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=BATCHES_AHEAD)


def _read(indices, *, source, tokenizer):
    """The documents at `indices` as a list of int32 arrays, each with its eos."""
    indices = indices.tolist()
    many = getattr(source, "__getitems__", None)
    documents = many(indices) if many else [source[i] for i in indices]
    texts = [document["text"] for document in documents]
    texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
    return [np.array([*tokenizer.encode(text), tokenizer.eos_id], np.int32) for text in texts]


class _Split(grain.experimental.FlatMapTransform):
    """Documents to segments of at most `length` tokens, each of which overlaps the next by one."""

    def __init__(self, length):
        self.length = length

    def flat_map(self, element):
        return [
            {"tokens": document[start : start + self.length]}
            for document in element
            for start in range(0, len(document) - 1, self.length - 1)  # none if eos is all
        ]


def _finish(batch, *, pad_id):
    """Targets and their mask: the next token of the row, where it is of the same segment."""
    segments = batch["tokens_segment_ids"]
    tokens = np.where(segments > 0, batch["tokens"], pad_id).astype(np.int32)
    loss_mask = np.zeros(tokens.shape, bool)
    loss_mask[:, :-1] = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] > 0)
    return {
        "tokens": tokens,
        "targets": np.where(loss_mask, np.roll(tokens, -1, axis=1), pad_id).astype(np.int32),
        "loss_mask": loss_mask,
        "segment_ids": segments,
        "positions": batch["tokens_positions"],
        "normalizer": np.float32(loss_mask.sum()),
    }
