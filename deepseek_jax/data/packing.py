"""Documents to rows of fixed length, several to a row, distinguished by segment_ids.

`pack` makes the batches of pretraining. `pack_segments` packs any other segments, such as
conversations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import grain
import numpy as np

from deepseek_jax.data.infill import check_fim_rate, fill_in_the_middle
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.stored import RandomAccess
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.training.settings import check_readers

# Documents read in one call: read one by one, they cost more time than all other work
BLOCK = 64
# Rows filled at the same time: with more of them there is less padding
PACKING_BINS = 128
# Batches that a thread packs while the accelerator works
BATCHES_AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Shape of a batch's rows, and which of the rows one reader packs.

    Every reader packs every readers-th document of every source into its share of the rows. So the
    rows depend on the number of readers, and not on how many processes run the readers.

    Attributes:
        sequence_length: Tokens in a row.
        batch_size: Rows of a batch, of all readers together.
        packing: False for one document a row.
        reader: The number of this reader, from 0.
        readers: The number of readers.

    Raises:
        ValueError: The rows have no room for a target, or do not split evenly over the readers.
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

    def order(self, mixture: Mixture, seed: int, num_epochs: int | None = None) -> grain.MapDataset:
        """Return `Mixture.order` of this reader."""
        return mixture.order(seed, num_epochs=num_epochs, reader=self.reader, readers=self.readers)


def pack(
    source: RandomAccess,
    tokenizer: Tokenizer,
    rows: Rows,
    *,
    seed: int,
    num_epochs: int | None = None,
    fim_rate: float = 0.0,
) -> grain.IterDataset:
    """Return language-modelling batches of documents, shuffled by `seed`, as a grain.IterDataset.

    Each document ends in eos and is one segment. A text may be a sequence of texts, the turns of a
    conversation: then each of them ends in eos, and together they are one segment.

    A document longer than a row becomes several segments. Each of them starts with the last token
    of the one before, so that every token except a document's first is predicted once an epoch.
    With rows.packing=False a row has one document, cut to its first segment.

    The iterators resume exactly by get_state(), which is JSON, and set_state(). close() ends the
    thread that reads ahead.

    Args:
        source: A Mixture, or random access to {"text": str or UTF-8 bytes}, such as
            `sources.file_documents` or a list.
        tokenizer: The tokenizer of the documents.
        rows: The shape of the batch, and the reader that packs.
        seed: Seed of the order, of the packing and of fill-in-the-middle.
        num_epochs: None repeats for ever, in another order each time. A finite run, see
            `Mixture.order`, fills its last batch with padding.
        fim_rate: Share of the documents that are learned as prefix, suffix, middle
            (`infill.fill_in_the_middle`), other documents in each epoch. In a document of several
            segments each segment is drawn separately. Conversations are never rearranged.

    Returns:
        Batches as dicts of numpy arrays: tokens, targets, segment_ids and positions int32[b t];
        loss_mask bool[b t]; normalizer float32[], the number of True in loss_mask; num_tokens
        float32[], the number of tokens without padding. normalizer and num_tokens count only the
        rows of this reader. Segments count from 1, positions from 0; padding is segment 0.
        loss_mask is False where the next token belongs to another segment.

    Raises:
        ValueError: As `Mixture.order` and `check_fim_rate` do.
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


def pack_segments(
    blocks: grain.MapDataset,
    to_segments: grain.experimental.FlatMapTransform,
    rows: Rows,
    *,
    features: Sequence[str],
    seed: int,
    pad_id: int,
) -> grain.IterDataset:
    """Pack segments into rows, first fit, and rows into batches, as `pack` does.

    Args:
        blocks: Each element has several documents.
        to_segments: Turns an element of blocks into segments: dicts of `features`.
        rows: The shape of the batch, and the reader that packs.
        features: Names of the arrays of a segment. tokens is int32. weights, optional, is float32
            and as long as tokens: the loss weight of predicting each token, 0 for no loss. Both
            have at most rows.sequence_length entries. Other features, of shape [length ...] with
            any length, pass through unchanged. A feature with a NAME that ends in "tokens" also
            gets NAME_segment_ids.
        seed: Seed of the packing.
        pad_id: The token of padding.

    Returns:
        Batches. With weights, they also have loss_weights, float32[b t];
        loss_mask is then False where the weight is 0, and normalizer is the sum of the weights.
    """
    # Without this Grain would start 16 threads more; the prefetching thread below already reads ahead
    read_options = grain.ReadOptions(prefetch_buffer_size=0)
    packed_rows = grain.experimental.FirstFitPackIterDataset(
        grain.experimental.FlatMapIterDataset(blocks.to_iter_dataset(read_options), to_segments),
        length_struct=dict.fromkeys(features, rows.sequence_length),
        num_packing_bins=PACKING_BINS,
        max_sequences_per_bin=None if rows.packing else 1,
        seed=seed,
    )
    reader_batch_size = rows.batch_size // rows.readers
    pad_rows = partial(grain.experimental.batch_and_pad, batch_size=reader_batch_size)
    batches = packed_rows.batch(reader_batch_size, batch_fn=pad_rows)
    batches = batches.map(partial(_finish, pad_id=pad_id, other_features=_others(features)))
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=BATCHES_AHEAD)


def whole_row(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | np.generic]:
    """Return a batch of one row that one segment fills; plans take its shapes and dtypes.

    Args:
        features: Name -> array [length ...] of the segment, as `pack_segments` gets them from
            to_segments.
    """
    row = {name: array[None] for name, array in features.items()}
    for name in filter(lambda name: name.endswith("tokens"), features):
        row[f"{name}_segment_ids"] = np.ones_like(row[name])
        row[f"{name}_positions"] = np.arange(len(features[name]), dtype=np.int32)[None]
    return _finish(row, pad_id=0, other_features=_others(features))


def _others(features):
    """Return the names of the features that pass through."""
    return [name for name in features if name not in ("tokens", "weights")]


def _read(draws, *, source, tokenizer, length, fim_rate, seed):
    """Read and encode documents: each becomes a list of its segments, int32[up to length].

    Args:
        draws: int64[n 2], epoch and document.
    """
    draws = draws.tolist()
    documents = source.__getitems__([index for _, index in draws])
    segments_by_document = []
    for (epoch, index), document in zip(draws, documents, strict=True):
        text = document_text(document["text"], index)
        # This seed must not depend on the number of readers or on where a run resumes
        own_seed = (seed, epoch, index)
        if isinstance(text, list):
            segments = _turns(text, tokenizer, length)
        else:
            segments = fill_in_the_middle(
                text, tokenizer, length=length, rate=fim_rate, seed=own_seed
            )
        segments_by_document.append([np.array(segment, np.int32) for segment in segments])
    return segments_by_document


def _turns(texts, tokenizer, length):
    """Encode texts that each end in eos, as segments of at most `length` ids.

    Each segment begins with the last id of the one before.
    """
    ids = [token for text in texts for token in (*tokenizer.encode(text), tokenizer.eos_id)]
    return [ids[start : start + length] for start in range(0, len(ids) - 1, length - 1)]


def document_text(text, index: int) -> str | list:
    """Return a document's text as a str, or as a list of str if it is a sequence of texts.

    Raises:
        ValueError: The text is bytes that are not UTF-8; the message has the document's index.
    """
    if not isinstance(text, (str, bytes)):
        return [document_text(turn, index) for turn in text]
    try:
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise ValueError(f"document {index} of the data is not UTF-8 text: {error}") from error


class _Segments(grain.experimental.FlatMapTransform):
    """Pass on all segments of several documents."""

    def flat_map(self, element):
        return [{"tokens": segment} for document in element for segment in document]


class _FirstSegments(grain.experimental.FlatMapTransform):
    """Pass on the first segment of each of several documents."""

    def flat_map(self, element):
        return [{"tokens": segment} for document in element for segment in document[:1]]


def _finish(batch, *, pad_id, other_features):
    """Add targets and their mask: a target is the row's next token.

    The mask is True where that token is of the same segment and has a weight.
    """
    segments = batch["tokens_segment_ids"]
    # Grain pads with 0, which may be an ordinary token
    tokens = np.where(segments > 0, batch["tokens"], pad_id).astype(np.int32)
    weights = batch.get("weights", np.ones(tokens.shape, np.float32))
    # A segment's last token has no target: the next token is padding or another document's
    same_segment = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] > 0)
    loss_weights = np.zeros(tokens.shape, np.float32)
    loss_weights[:, :-1] = np.where(same_segment, weights[:, 1:], 0)
    loss_mask = loss_weights > 0
    finished_batch = {name: batch[name] for name in other_features}
    finished_batch |= {
        f"{name}_segment_ids": batch[f"{name}_segment_ids"]
        for name in other_features
        if name.endswith("tokens")
    }
    finished_batch |= {
        "tokens": tokens,
        # roll wraps the first token around to the last column, where loss_mask is False
        "targets": np.where(loss_mask, np.roll(tokens, -1, axis=1), pad_id).astype(np.int32),
        "loss_mask": loss_mask,
        "segment_ids": segments,
        "positions": batch["tokens_positions"],
    }
    finished_batch |= {"loss_weights": loss_weights} if "weights" in batch else {}
    return finished_batch | totals(finished_batch)


def totals(batch):
    """Return {normalizer, num_tokens} of the rows of a batch.

    Both are float32[]; see `pack` and `pack_segments`.
    """
    weights = batch.get("loss_weights", batch["loss_mask"])
    return {
        "normalizer": np.float32(weights.sum(dtype=np.float64)),
        "num_tokens": np.float32((batch["segment_ids"] > 0).sum()),
    }
