"""DeepSeek Sparse Attention: index scores, and the keys that each query selects by them.

DeepSeek-V3.2-Exp, section 2; arXiv:2512.02556. Scores, selection and attention over selected keys
are separate ops: ops.attention takes a selection, and ops.index_loss trains the scores. A tie goes
to the key of the lowest position: ReLU makes many scores exactly 0, so ties are common with few
index heads.

One more dimension letter: z, the bytes of a row of bits, with one bit per key.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.platform import choose, size_of


def index_scores(q_btjy, k_bsy, w_btj, of_block=None):
    """Return index scores I[t, s] = sum_j w[t, j] ReLU(q[t, j] . k[s] / sqrt(y)): float32[b t s].

    One key head serves all query heads. The released inference code also rotates q and k by one
    orthogonal matrix, which leaves every product unchanged, and rounds them to FP8, which this
    function does not.

    The products of all heads are float32[b t j s]. If they are more numbers than
    "index_scores_alive" (ops.platform), they are computed for one block of keys at a time, and
    again for the gradient.

    Args:
        w_btj: float32, already scaled by 1 / sqrt(j).
        of_block: The scores of a block of keys, as a function of these arrays. None for the
            equation above.
    """
    scores_of_block = of_block or _scores_of_block
    s, lanes = k_bsy.shape[1], 128
    block = max(size_of("index_scores_alive") // w_btj.size // lanes, 1) * lanes
    if s <= block:
        return scores_of_block(q_btjy, k_bsy, w_btj)
    k_bsy = jnp.pad(k_bsy, [(0, 0), (0, -s % block), (0, 0)])
    k_nbsy = jnp.moveaxis(k_bsy.reshape(len(k_bsy), -1, block, k_bsy.shape[-1]), 1, 0)
    one_block = jax.checkpoint(lambda k: scores_of_block(q_btjy, k, w_btj))
    scores_nbts = jax.lax.map(one_block, k_nbsy)
    return jnp.moveaxis(scores_nbts, 0, 2).reshape(*q_btjy.shape[:2], -1)[..., :s]


def _scores_of_block(q_btjy, k_bsy, w_btj):
    return weighted_relus(dot("btjy,bsy->btjs", q_btjy, k_bsy, jnp.float32), q_btjy, w_btj)


def weighted_relus(products_btjs, q_btjy, w_btj):
    """Return the index scores of products q . k: float32[b t s], see `index_scores`.

    Or of one query: the weights [1 j] of products [j s] give float32[1 s].
    """
    positive_btjs = jax.nn.relu(products_btjs * q_btjy.shape[-1] ** -0.5)
    # Not a dot: it would have one column, and an exact float32 product takes a TPU several passes
    return (w_btj[..., None] * positive_btjs).sum(-2)


def select(scores, mask, index_topk: int, implementation: str | None = None):
    """Select the index_topk largest scores among the keys that each query may see: bool[... s].

    A tie goes to the lowest index. A query that may see no more than index_topk keys selects all of
    them.

    Args:
        scores: float32[... s].
        mask: bool[... s], the keys that a query may see.
        implementation: How to find the lowest score that is selected: "sorted" or "bits". None
            takes the choice of ops.platform.
    """
    if index_topk >= scores.shape[-1]:
        return mask
    find_kth = choose("kth_largest", implementation, sorted=_kth_sorted, bits=_kth_by_bits)
    scores = jnp.where(mask, scores, -jnp.inf)
    lowest = find_kth(scores, index_topk)
    is_above, is_tied = scores > lowest, scores == lowest
    num_tied = index_topk - is_above.sum(-1, keepdims=True, dtype=jnp.int32)
    is_selected = is_above | (is_tied & (jnp.cumsum(is_tied, axis=-1, dtype=jnp.int32) <= num_tied))
    # If a query sees fewer than index_topk keys, `lowest` is -inf, as are all unseen keys
    return is_selected & mask


def _kth_sorted(scores, k):
    return jax.lax.top_k(scores, k)[0][..., -1:]


def _kth_by_bits(scores, k):
    """Find the k-th largest score by a search through the 32 bits of a float, three at a time.

    This reads the scores 11 times and sorts nothing.
    """
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # Unsigned integers in the same order as the floats
    ordered_bits = jnp.where(bits & sign, ~bits, bits | sign)

    def next_digit(known_bits, shift, num_bits):
        def is_enough(digit):
            trial_bits = known_bits | (jnp.uint32(digit) << shift)
            return (ordered_bits >= trial_bits).sum(-1, keepdims=True, dtype=jnp.int32) >= k

        # Larger digits leave fewer scores, so that the count of those that suffice is the digit
        digit = sum(is_enough(digit).astype(jnp.uint32) for digit in range(1, 2**num_bits))
        return known_bits | (digit << shift)

    known_bits = jnp.zeros((*scores.shape[:-1], 1), jnp.uint32)
    known_bits = next_digit(known_bits, jnp.uint32(30), 2)
    known_bits = jax.lax.fori_loop(
        0, 10, lambda i, x: next_digit(x, jnp.uint32(27 - 3 * i), 3), known_bits
    )
    return jax.lax.bitcast_convert_type(
        jnp.where(known_bits & sign, known_bits ^ sign, ~known_bits), jnp.float32
    )


def select_indices(scores, mask, index_topk: int):
    """Compute `select` as ascending indices, for a gather.

    Returns:
        (int32[... k], bool[... k]) with k = index_topk: indices, and False in the last places of a
        query that selects fewer than k keys.
    """
    is_selected = select(scores, mask, index_topk)
    lanes, s = 128, scores.shape[-1]
    padding = [(0, 0)] * (scores.ndim - 1) + [(0, -s % lanes)]
    # Chunks of keys: a search through all keys would gather single numbers, many times
    chunks = jnp.pad(is_selected, padding).reshape(*scores.shape[:-1], -1, lanes)
    upto = jnp.cumsum(chunks.sum(-1, dtype=jnp.int32), axis=-1)[..., None, :]
    nth = jnp.arange(index_topk)
    # The n-th key, from 0, is in the first chunk up to which more than n keys are selected
    is_earlier = upto <= nth[:, None]
    chunk = jnp.minimum(is_earlier.sum(-1), chunks.shape[-2] - 1)
    number_in_chunk = nth - jnp.where(is_earlier, upto, 0).max(-1)
    # A chunk's bits as four words: a TPU gathers words of 32 bits
    word_bits = jnp.arange(32, dtype=jnp.uint32)
    words = chunks.reshape(*chunks.shape[:-1], -1, 32).astype(jnp.uint32) << word_bits
    own_words = jnp.take_along_axis(words.sum(-1, dtype=jnp.uint32), chunk[..., None], axis=-2)
    own_bits = (own_words[..., None] >> word_bits) & 1
    counts = jnp.cumsum(own_bits.reshape(*chunk.shape, lanes), axis=-1, dtype=jnp.int32)
    lane = (counts <= number_in_chunk[..., None]).sum(-1)
    indices = jnp.minimum(chunk * lanes + lane, s - 1)
    return indices, nth < upto[..., -1]


def select_rows(q_btjy, k_bsy, w_btj, segments_bt, segments_bs, *, first, index_topk: int):
    """Select the keys of each query in packed rows, as `packed` bits: uint8[b t z].

    The operands are as in `index_scores`. No gradient passes. The scores of one block of queries
    are in memory at a time.

    Args:
        segments_bt: int32, segments of the queries. A query sees the keys of its own segment up to
            itself.
        segments_bs: int32, segments of the keys.
        first: int32[], index of query 0 in its row.
    """
    operands = q_btjy, k_bsy, w_btj, segments_bt, segments_bs

    def select_block(scores, mask):
        return packed(select(scores, mask, index_topk))

    return _select_by_blocks(select_block, operands, first)


def select_slots(q_btjy, k_bsy, w_btj, segments_bt, segments_bs, *, first, index_topk: int):
    """Compute `select_rows` as ascending indices of keys, -1 where a query selects fewer.

    Returns:
        int32[b t index_topk]. All are -1 for a query of padding, segment 0.
    """

    def slots_of(scores_bts, mask_bts):
        indices_btk, filled_btk = select_indices(scores_bts, mask_bts, index_topk)
        return jnp.where(filled_btk, indices_btk, -1)

    slots_btk = _select_by_blocks(slots_of, (q_btjy, k_bsy, w_btj, segments_bt, segments_bs), first)
    return jnp.where(segments_bt[..., None] > 0, slots_btk, -1)


def _select_by_blocks(select_from, operands, first):
    """Apply select_from(scores, mask) to the operands of select_rows, a block at a time."""
    q_btjy, k_bsy, w_btj, segments_bt, segments_bs = jax.lax.stop_gradient(operands)

    def one_block(block):
        q_btjy, w_btj, segments_bt, at_t = block
        mask_bts = seen(segments_bt, segments_bs, at_t)
        return select_from(index_scores(q_btjy, k_bsy, w_btj), mask_bts)

    at_t = first + jnp.arange(q_btjy.shape[1])
    blocks = over_query_blocks(one_block, k_bsy.shape[1], at_t, q_btjy, w_btj, segments_bt)
    return blocks[:, : q_btjy.shape[1]]


def select_branches(q_btjy, k_bty, w_btj, segment_ids, *, layout: Branches, index_topk: int):
    """Select keys for rows of ops.attention.attend_branches, as `packed` bits: uint8[b t z].

    As `select_rows`, but a query's bits stand for the keys of the prefix and of one branch. For a
    query in a branch, this is its own branch.
    """
    q_btjy, k_bty, w_btj = jax.lax.stop_gradient((q_btjy, k_bty, w_btj))
    split_arrays = map(layout.split, (q_btjy, k_bty, w_btj, segment_ids))
    (q_prefix, q_bntjy), (k_prefix, k_bnsy), (w_prefix, w_bntj), (segments_bs, segments_bns) = (
        split_arrays
    )
    at_t = jnp.arange(layout.prefix_length)
    causal_mask = seen(segments_bs, segments_bs, at_t)
    prefix_selected = select(index_scores(q_prefix, k_prefix, w_prefix), causal_mask, index_topk)
    prefix_scores = jax.vmap(index_scores, (1, None, 1), 1)(q_bntjy, k_prefix, w_bntj)
    branch_scores = jax.vmap(index_scores, 1, 1)(q_bntjy, k_bnsy, w_bntj)
    branch_length = q_bntjy.shape[2]
    branch_mask = jax.vmap(seen, (1, 1, None), 1)(
        segments_bns, segments_bns, jnp.arange(branch_length)
    )
    prefix_mask = jnp.broadcast_to((segments_bs > 0)[:, None, None], prefix_scores.shape)
    scores, mask = (
        jnp.concatenate(pair, -1)
        for pair in ((prefix_scores, branch_scores), (prefix_mask, branch_mask))
    )
    branch_selected = select(scores, mask, index_topk)
    branch_selected = branch_selected.reshape(len(scores), -1, layout.prefix_length + branch_length)
    prefix_selected = jnp.pad(prefix_selected, [(0, 0), (0, 0), (0, branch_length)])
    return packed(jnp.concatenate([prefix_selected, branch_selected], axis=1))


def seen(segments_bt, segments_bs, at_t):
    """Return the keys that each query may see, up to itself in its own segment: bool[b t s].

    Args:
        segments_bt: Segments of the queries.
        segments_bs: Segments of the keys.
        at_t: int32[t], the queries' indices in their row.
    """
    before_ts = at_t[:, None] >= jnp.arange(segments_bs.shape[1])
    return before_ts & (segments_bt[:, :, None] == segments_bs[:, None, :])


def over_query_blocks(function, keys: int, at_t, *arrays):
    """Apply a function to one block of queries at a time if there are many queries or keys.

    Args:
        function: Takes a tuple (*arrays, at_t) of the queries in a block.
        keys: Number of keys.
        at_t: int32[t], the queries' indices in their row.
        *arrays: [b t ...] each.

    Returns:
        [b t ...], where t is padded to whole blocks. Padding has the index -1, so it sees no key.
    """
    t, block = len(at_t), size_of("attention_block")
    if max(t, keys) <= max(block, size_of("longest_whole_row")):
        return function((*arrays, at_t))

    def split(array):
        array = jnp.pad(array, [(0, 0), (0, -t % block)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(array.reshape(len(array), -1, block, *array.shape[2:]), 1, 0)

    at_nt = jnp.pad(at_t, (0, -t % block), constant_values=-1).reshape(-1, block)
    out = jax.lax.map(function, (*map(split, arrays), at_nt))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(len(out), -1, *out.shape[3:])


def packed(chosen):
    """Pack a selection into bits: bool[... s] -> uint8[... z].

    It takes an eighth of the memory, where a selection stays until its gradient.
    """
    return jnp.packbits(chosen, axis=-1)


def unpacked(bits, count: int):
    """Undo `packed`: uint8[... z] -> bool[... s] of `count` keys."""
    return jnp.unpackbits(bits, axis=-1, count=count).astype(bool)
