"""Documents to rows of fixed length, several to a row, told apart by segment_ids."""

from functools import partial

import grain
import numpy as np

from deepseek_jax.data.infill import check_fim_rate, fill_in_the_middle
from deepseek_jax.data.mixture import Mixture

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
    packing=True,
    fim_rate=0.0,
    process_index=0,
    process_count=1,
):
    """Language-modelling batches of documents, shuffled by `seed`, as a grain.IterDataset.

    source: a Mixture, or random access to {"text": str or UTF-8 bytes}, as
    sources.arithmetic_corpus() or a list. Each document ends in eos and is one segment. One longer
    than a row becomes several, each starting with the last token of the one before, so that every
    token but a document's first is predicted once an epoch. packing=False: a document a row, the
    first of those segments. fim_rate: share of the documents, and of a longer one's segments, that
    are learned as prefix, suffix, middle (infill.fill_in_the_middle), others in each epoch.
    num_epochs: None repeats for ever, in another order each time; a finite run, see Mixture.order,
    fills its last batch with padding. The iterators resume exactly by get_state(), which is JSON,
    and set_state(); close() ends the thread that reads ahead. batch_size counts the rows of all
    processes: each packs every process_count-th document of every source into its share of the
    rows; normalizer and num_tokens are its own.

    Batches are numpy: tokens, targets, segment_ids, positions int32[b t], loss_mask bool[b t];
    float32[], normalizer, the number of True in loss_mask, and num_tokens, that of tokens which are
    no padding. Segments count from 1, positions from 0; padding is segment 0. loss_mask is False
    where the next token is another document's.
    Raises ValueError for a source with less than a document a process, a row without room for a
    target, rows that do not split over the processes, and as Mixture.order and check_fim_rate do.
    """
    check_rows(sequence_length, batch_size, process_count)
    check_fim_rate(fim_rate, tokenizer)
    mixture = source if isinstance(source, Mixture) else Mixture((source,), (1,))
    documents = mixture.order(
        seed, num_epochs=num_epochs, process_index=process_index, process_count=process_count
    )
    how = dict(tokenizer=tokenizer, length=sequence_length, fim_rate=fim_rate, seed=seed)
    to_ids = partial(_read, source=mixture, **how)
    return pack_segments(
        documents.batch(BLOCK).map(to_ids),
        _Segments() if packing else _FirstSegments(),
        features=("tokens",),
        sequence_length=sequence_length,
        batch_size=batch_size // process_count,
        seed=seed,
        packing=packing,
        pad_id=tokenizer.pad_id,
    )


def pack_segments(
    blocks, to_segments, *, features, sequence_length, batch_size, seed, packing, pad_id
):
    """Segments to rows, first fit, and rows to batches: -> grain.IterDataset of them, as of pack.

    blocks: a grain.MapDataset, of whose elements to_segments, a grain FlatMapTransform, makes dicts of
    `features`, arrays of one length up to sequence_length: tokens, int32, and optionally weights, float32,
    how much it counts to predict the token, 0 for not at all. The batches then have loss_weights too,
    float32[b t]; their loss_mask is False where that is 0, and normalizer is its sum. Other features, of
    any length and [length ...] each, come along as they are, those of tokens with their segment_ids.
    batch_size: rows of this process. packing=False: a segment a row.
    """
    in_this_thread = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    rows = grain.experimental.FirstFitPackIterDataset(
        grain.experimental.FlatMapIterDataset(blocks.to_iter_dataset(in_this_thread), to_segments),
        length_struct=dict.fromkeys(features, sequence_length),
        num_packing_bins=PACKING_BINS,
        max_sequences_per_bin=None if packing else 1,
        seed=seed,
    )
    pad_rows = partial(grain.experimental.batch_and_pad, batch_size=batch_size)
    batches = rows.batch(batch_size, batch_fn=pad_rows)
    others = [name for name in features if name not in ("tokens", "weights")]
    batches = batches.map(partial(_finish, pad_id=pad_id, others=others))
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=BATCHES_AHEAD)


def check_rows(sequence_length, batch_size, process_count):
    """Raise ValueError for rows without room for a target, or that do not split over the processes."""
    if sequence_length < 2 or batch_size < 1:
        raise ValueError(
            f"sequence_length={sequence_length} and batch_size={batch_size} leave nothing to "
            "predict; set sequence_length to at least 2 and batch_size to at least 1."
        )
    if batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} does not split over {process_count} processes; "
            f"set it to a multiple of {process_count}."
        )


def _read(draws, *, source, tokenizer, length, fim_rate, seed):
    """Documents, each a list of its segments, int32[up to length]. draws: int64[n 2], epoch and document."""
    draws = draws.tolist()
    documents = source.__getitems__([index for _, index in draws])
    read = []
    for (epoch, index), document in zip(draws, documents, strict=True):
        text = _text(document["text"], index)
        own_seed = (seed, epoch, index)  # the same whatever the processes and the place resumed at
        segments = fill_in_the_middle(text, tokenizer, length=length, rate=fim_rate, seed=own_seed)
        read.append([np.array(segment, np.int32) for segment in segments])
    return read


def _text(text, index):
    try:
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise ValueError(f"document {index} of the data is not UTF-8 text: {error}") from error


class _Segments(grain.experimental.FlatMapTransform):
    """The segments of several documents."""

    def flat_map(self, element):
        return [{"tokens": segment} for document in element for segment in document]


class _FirstSegments(grain.experimental.FlatMapTransform):
    """The first segment of each of several documents."""

    def flat_map(self, element):
        return [{"tokens": segment} for document in element for segment in document[:1]]


def _finish(batch, *, pad_id, others):
    """Targets and their mask: the next token of the row, where it is of the same segment and counts."""
    segments = batch["tokens_segment_ids"]
    tokens = np.where(segments > 0, batch["tokens"], pad_id).astype(np.int32)
    weights = batch.get("weights", np.ones(tokens.shape, np.float32))
    same = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] > 0)
    loss_weights = np.zeros(tokens.shape, np.float32)
    loss_weights[:, :-1] = np.where(same, weights[:, 1:], 0)
    loss_mask = loss_weights > 0
    finished = {name: batch[name] for name in others}
    finished |= {
        f"{name}_segment_ids": batch[f"{name}_segment_ids"]
        for name in others
        if name.endswith("tokens")
    }
    finished |= {
        "tokens": tokens,
        "targets": np.where(loss_mask, np.roll(tokens, -1, axis=1), pad_id).astype(np.int32),
        "loss_mask": loss_mask,
        "segment_ids": segments,
        "positions": batch["tokens_positions"],
        "normalizer": np.float32(loss_weights.sum(dtype=np.float64)),
        "num_tokens": np.float32((segments > 0).sum()),
    }
    return finished | ({"loss_weights": loss_weights} if "weights" in batch else {})
