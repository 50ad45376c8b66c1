"""Documents to rows of fixed length, several to a row, distinguished by segment_ids."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import grain
import numpy as np

from deepseek_jax.data.infill import check_fim_rate, fill_in_the_middle
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.training.settings import check_readers

# Documents read at once: one by one, reading costs more than all the rest
BLOCK = 64
# Rows filled side by side: more of them leave less padding
PACKING_BINS = 128
# Batches that a thread packs while the accelerator works
BATCHES_AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a batch, and which of them one reader packs.

    batch_size counts the rows of all readers: each of them packs every readers-th document of every source
    into its share of the rows. So the rows depend on the number of readers, and not on how many processes run
    them. packing=False: one document a row.
    Raises ValueError for rows without room for a target, or rows that do not split over the readers.
    """

    sequence_length: int
    batch_size: int
    packing: bool = True
    reader: int = 0
    readers: int = 1

    def __post_init__(self):
        if self.sequence_length < 2 or self.batch_size < 1:
            raise ValueError(
                f"sequence_length={self.sequence_length} and batch_size={self.batch_size} leave nothing to "
                "predict; set sequence_length to at least 2 and batch_size to at least 1."
            )
        check_readers(self.readers, self.batch_size)

    def order(self, mixture: Mixture, seed: int, num_epochs: int | None = None):
        """Mixture.order of this reader."""
        return mixture.order(seed, num_epochs=num_epochs, reader=self.reader, readers=self.readers)


def pack(
    source: Any,
    tokenizer: Tokenizer,
    rows: Rows,
    *,
    seed: int,
    num_epochs: int | None = None,
    fim_rate: float = 0.0,
) -> grain.IterDataset:
    """Language-modelling batches of documents, shuffled by `seed`, as a grain.IterDataset.

    source: a Mixture, or random access to {"text": str or UTF-8 bytes}, such as
    sources.file_documents() or a list. Each document ends in eos and is one segment. A text may be a sequence
    of texts, the turns of a conversation: each of them ends in eos, within the one segment. One longer
    than a row becomes several, each starting with the last token of the one before, so that every
    token but a document's first is predicted once an epoch. rows.packing=False: one document a row, cut
    to its first segment. fim_rate: share of the documents, and of a longer one's segments, that
    are learned as prefix, suffix, middle (infill.fill_in_the_middle), others in each epoch; no conversation
    is.
    num_epochs: None repeats for ever, in another order each time; a finite run, see Mixture.order,
    fills its last batch with padding. The iterators resume exactly by get_state(), which is JSON,
    and set_state(); close() ends the thread that reads ahead. The normalizer and num_tokens of a reader
    count its own rows alone.

    Batches are numpy: tokens, targets, segment_ids, positions int32[b t]; loss_mask bool[b t];
    normalizer float32[], the number of True in loss_mask; num_tokens float32[], the number of tokens
    without padding. Segments count from 1, positions from 0; padding is segment 0. loss_mask is False
    where the next token belongs to another segment.
    Raises ValueError as Mixture.order and check_fim_rate do.
    """
    check_fim_rate(fim_rate, tokenizer)
    mixture = source if isinstance(source, Mixture) else Mixture((source,), (1,))
    documents = rows.order(mixture, seed, num_epochs)
    to_ids = partial(
        _read,
        source=mixture,
        tokenizer=tokenizer,
        length=rows.sequence_length,
        fim_rate=fim_rate,
        seed=seed,
    )
    return pack_segments(
        documents.batch(BLOCK).map(to_ids),
        _Segments() if rows.packing else _FirstSegments(),
        rows,
        features=("tokens",),
        seed=seed,
        pad_id=tokenizer.pad_id,
    )


def pack_segments(blocks, to_segments, rows: Rows, *, features, seed: int, pad_id: int):
    """Segments to rows, first fit, and rows to batches as of pack: a grain.IterDataset.

    blocks: a grain.MapDataset. to_segments: a grain FlatMapTransform; it turns an element of blocks into
    dicts of `features`, arrays of one length up to rows.sequence_length: tokens, int32, and, if wanted,
    weights, float32, the weight of predicting each token, 0 for no loss. With weights the batches have
    loss_weights, float32[b t]; their loss_mask is False where that is 0, and normalizer is its sum. Other
    features, of any length and [length ...] each, pass through unchanged; one whose name ends in "tokens" has
    its segment_ids too.
    """
    # The prefetching thread below reads ahead; by default Grain would start 16 more
    in_this_thread = grain.ReadOptions(prefetch_buffer_size=0)
    packed = grain.experimental.FirstFitPackIterDataset(
        grain.experimental.FlatMapIterDataset(blocks.to_iter_dataset(in_this_thread), to_segments),
        length_struct=dict.fromkeys(features, rows.sequence_length),
        num_packing_bins=PACKING_BINS,
        max_sequences_per_bin=None if rows.packing else 1,
        seed=seed,
    )
    own = rows.batch_size // rows.readers
    pad_rows = partial(grain.experimental.batch_and_pad, batch_size=own)
    batches = packed.batch(own, batch_fn=pad_rows)
    batches = batches.map(partial(_finish, pad_id=pad_id, others=_others(features)))
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=BATCHES_AHEAD)


def whole_row(features: dict):
    """A batch of one row, which one segment fills: what a plan makes many of. features: name -> array
    [length ...] of the segment, as to_segments of pack_segments gives them.
    """
    row = {name: array[None] for name, array in features.items()}
    for name in filter(lambda name: name.endswith("tokens"), features):
        row[f"{name}_segment_ids"] = np.ones_like(row[name])
        row[f"{name}_positions"] = np.arange(len(features[name]), dtype=np.int32)[None]
    return _finish(row, pad_id=0, others=_others(features))


def _others(features):
    """The features that pass through."""
    return [name for name in features if name not in ("tokens", "weights")]


def _read(draws, *, source, tokenizer, length, fim_rate, seed):
    """Each document as a list of its segments, int32[up to length]. draws: int64[n 2], epoch and document."""
    draws = draws.tolist()
    documents = source.__getitems__([index for _, index in draws])
    read = []
    for (epoch, index), document in zip(draws, documents, strict=True):
        text = document_text(document["text"], index)
        # This seed depends neither on the number of readers nor on where the run resumed
        own_seed = (seed, epoch, index)
        if isinstance(text, list):
            segments = _turns(text, tokenizer, length)
        else:
            segments = fill_in_the_middle(
                text, tokenizer, length=length, rate=fim_rate, seed=own_seed
            )
        read.append([np.array(segment, np.int32) for segment in segments])
    return read


def _turns(texts, tokenizer, length):
    """Texts that each end in eos, as segments of up to `length` ids; each begins with the last id of the one
    before.
    """
    ids = [token for text in texts for token in (*tokenizer.encode(text), tokenizer.eos_id)]
    return [ids[start : start + length] for start in range(0, len(ids) - 1, length - 1)]


def document_text(text, index: int):
    """A document's text as a str, or as a list of str where it is a sequence of texts. Raises ValueError,
    naming the document by its index, for bytes that are not UTF-8.
    """
    if not isinstance(text, (str, bytes)):
        return [document_text(each, index) for each in text]
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
    """Add targets and their mask: the row's next token, where it is of the same segment and has a weight."""
    segments = batch["tokens_segment_ids"]
    # Grain pads with 0, which may be an ordinary token
    tokens = np.where(segments > 0, batch["tokens"], pad_id).astype(np.int32)
    weights = batch.get("weights", np.ones(tokens.shape, np.float32))
    # A segment's last token has no target: the next token is padding or another document's
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
        # roll wraps the first token around to the last column, where loss_mask is False
        "targets": np.where(loss_mask, np.roll(tokens, -1, axis=1), pad_id).astype(np.int32),
        "loss_mask": loss_mask,
        "segment_ids": segments,
        "positions": batch["tokens_positions"],
    }
    finished |= {"loss_weights": loss_weights} if "weights" in batch else {}
    return finished | totals(finished)


def totals(batch):
    """normalizer and num_tokens of these rows of a batch, see `pack` and `pack_segments`: a dict."""
    weights = batch.get("loss_weights", batch["loss_mask"])
    return {
        "normalizer": np.float32(weights.sum(dtype=np.float64)),
        "num_tokens": np.float32((batch["segment_ids"] > 0).sum()),
    }
