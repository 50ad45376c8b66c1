"""Texts that are nearly what an earlier one is: MinHash signatures (Broder 1997), found by hashing bands."""

from hashlib import blake2b

from datasketch import MinHash, MinHashLSH

from deepseek_jax.synthesis.ngrams import ngrams, units

NUM_PERMUTATIONS = (
    256  # the estimate of a similarity J is off by sqrt(J (1 - J) / 256), 0.02 at 0.9
)
ROWS = (
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
)  # of a band: two texts are compared if they agree on all of one
MISSED = 1e-3  # of the pairs at the threshold, those that may go uncompared


class NearDuplicates:
    """The texts that were new, by the sets of their runs of n units.

    threshold: the Jaccard similarity, within 0..1, from which a text is a near-duplicate. Bands make the
    candidates, and their whole signatures decide. The same texts in the same order give the same, on every
    machine. Holds a signature a text, 2 KiB.
    """

    def __init__(self, threshold, n):
        self.threshold, self.n = threshold, n
        rows = max(r for r in ROWS if _misses(threshold, r) <= MISSED)
        self._index = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=(NUM_PERMUTATIONS // rows, rows))
        self._signatures = []

    def is_new(self, text):
        """Whether the text is like none that was new before; it is then one of those. A text without any
        unit is always new."""
        runs = sorted(" ".join(run).encode() for run in ngrams(units(text), self.n))
        if not runs:
            return True
        signature = MinHash(NUM_PERMUTATIONS, seed=1, hashfunc=_digest)
        signature.update_batch(runs)
        for number in self._index.query(signature):
            if signature.jaccard(self._signatures[number]) >= self.threshold:
                return False
        self._index.insert(len(self._signatures), signature)
        self._signatures.append(signature)
        return True


def _misses(similarity, rows):
    """The probability that two texts agree on no band of so many rows."""
    return (1 - similarity**rows) ** (NUM_PERMUTATIONS // rows)


def _digest(run):
    return int.from_bytes(blake2b(run, digest_size=4).digest(), "little")
