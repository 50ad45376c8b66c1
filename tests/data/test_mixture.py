"""Several sources read side by side, against counts of what was drawn."""

import math

import numpy as np
import pytest

from deepseek_jax.data.mixture import Mixture
from deepseek_jax.worlds.registry import find_corpus

LENGTHS = (600, 300, 140)


def make_mixture(weights=(0.5, 0.3, 0.2)):
    return Mixture(tuple([{"text": f"{n}/{i}"} for i in range(n)] for n in LENGTHS), weights)


def draw(mixture, n, **settings):
    """The first n of the order, as int arrays: source, epoch, document in the source."""
    order = mixture.order(**settings)
    epochs, documents = np.array([order[i] for i in range(n)]).T
    sources = np.digitize(documents, np.cumsum(LENGTHS))
    return sources, epochs, documents - np.cumsum([0, *LENGTHS])[sources]


def test_a_mixture_counts_its_sources_one_after_another(tmp_path):
    """Oracle: the sources themselves, indexed; one reads blocks, the other single documents."""
    corpus = find_corpus("arithmetic")[1](num_documents=20, seed=0)
    documents = [{"text": f"{i}"} for i in range(5)]
    mixture = Mixture((documents, corpus, documents), (1, 1, 1))
    whole = [*documents, *(corpus[i] for i in range(20)), *documents]
    assert len(mixture) == len(whole)
    assert [mixture[i] for i in range(30)] == whole
    indices = np.random.default_rng(0).permutation(30).tolist()
    assert mixture.__getitems__(indices) == [whole[i] for i in indices]


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1, 1, 1), (30, 1, 5.5), (0.004, 0.9, 2)])
def test_shares_are_the_weights(weights):
    """Oracle: the weights. Off by 1% of a share, as documented, and by one or two documents."""
    sources, _, _ = draw(make_mixture(weights), 2000, seed=0)
    shares = np.array(weights) / sum(weights)
    counts = np.bincount(sources, minlength=3)
    np.testing.assert_array_less(np.abs(counts - 2000 * shares), 0.01 * 2000 * shares + 2)


@pytest.mark.parametrize("readers", [1, 3])
def test_every_epoch_of_every_source_has_each_document_once(readers):
    """Oracle: the documents' numbers, sorted; those of the readers put together."""
    shares = [
        draw(
            make_mixture(),
            3000 // readers,
            seed=1,
            reader=i,
            readers=readers,
        )
        for i in range(readers)
    ]
    for source, length in enumerate(LENGTHS):
        for epoch in range(2):
            parts = [d[(s == source) & (e == epoch)] for s, e, d in shares]
            assert sorted(np.concatenate(parts).tolist()) == list(range(length))
            assert len(parts) == readers and all(len(part) > 0 for part in parts)


def test_a_reader_keeps_its_documents_for_ever():
    """Oracle: the sets of two readers over many epochs share nothing, though epochs drift apart."""
    drawn = [
        set(
            zip(
                *draw(make_mixture(), 3000, seed=0, reader=i, readers=2)[::2],
                strict=True,
            )
        )
        for i in range(2)
    ]
    assert not drawn[0] & drawn[1] and len(drawn[0] | drawn[1]) == sum(LENGTHS)


def test_the_seed_sets_the_order_and_no_source_repeats_anothers():
    """Oracle: two orders of one seed, another seed, and three sources of one length compared."""
    first, again, other = (draw(make_mixture(), 500, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], other[0])  # the weights alone say whose turn it is
    assert (first[2] != other[2]).any()
    order = Mixture(([{"text": ""}] * 100,) * 3, (1, 1, 1)).order(0)
    drawn = np.array([order[i] for i in range(1200)])
    epochs = {
        tuple((drawn[(drawn[:, 0] == epoch) & (drawn[:, 1] // 100 == source)][:, 1] % 100).tolist())
        for epoch in range(4)
        for source in range(3)
    }
    assert len(epochs) == 12 and {len(epoch) for epoch in epochs} == {100}


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ((1, 2), r"^weights=\(1, 2\) of 3 sources"),
        ((1, 0, 1), "^weights=.*0 is not a share"),
        ((1, -2, 1), "-2 is not a share"),
        ((1, math.nan, 1), "nan is not a share"),
        ((1, math.inf, 1), "inf is not a share"),
    ],
)
def test_weights_that_say_no_shares_are_refused(weights, complaint):
    """Oracle: the message names the field and the value."""
    with pytest.raises(ValueError, match=complaint):
        make_mixture(weights)


def test_a_mixture_of_nothing_or_with_a_source_too_small_is_refused():
    """Oracle: the message says which source has how many documents."""
    with pytest.raises(ValueError, match="of 0 sources"):
        Mixture((), ())
    mixture = Mixture(([{"text": "a"}] * 5, [{"text": "b"}]), (1, 1))
    mixture.order(0, readers=1)
    with pytest.raises(ValueError, match="readers=2: source 1 has 1, .* needs one; give it more"):
        mixture.order(0, readers=2)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1, 1, 1), (30, 1, 5.5), (0.004, 0.9, 2)])
@pytest.mark.parametrize("num_epochs", [1, 2])
def test_a_finite_run_ends_with_the_first_source_and_reads_no_document_too_often(
    weights, num_epochs
):
    """Oracle: by hand: the run ends with the source that has the fewest documents for its weight. The length
    may be off by that source's last two turns, and by 1% of a weight. Each epoch's documents are counted.
    """
    mixture = make_mixture(weights)
    order = mixture.order(0, num_epochs=num_epochs)
    drawn = np.array([order[i] for i in range(len(order))])
    assert len(np.unique(drawn, axis=0)) == len(drawn) and drawn[:, 0].max() < num_epochs
    ends = num_epochs * np.array(LENGTHS) / (np.array(weights) / sum(weights))
    turns = 2 * sum(weights) / weights[int(ends.argmin())]
    assert 0.99 * ends.min() - turns <= len(drawn) <= 1.01 * ends.min()
