"""Detection of near-duplicates of earlier texts: MinHash (Broder 1997) with hashed bands."""

from hashlib import blake2b

from datasketch import MinHash, MinHashLSH

from deepseek_jax.synthesis.ngrams import ngrams, units

# The standard error of an estimated similarity J is sqrt(J (1 - J) / 256), 0.02 at 0.9
NUM_PERMUTATIONS = 256
# Allowed numbers of rows in a band. Two texts are compared if they agree on all rows of one band
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
# Largest share of the pairs at the threshold that no band may find
MISSED = 1e-3


class NearDuplicates:
    """Index that finds near duplicates among new texts, by their runs of n units.

    Bands of the signatures select candidates, and whole signatures decide. The same texts in the
    same order give the same results on every machine. The index stores one signature for each text,
    2 KiB.

    Args:
        threshold: A text with at least this Jaccard similarity, within 0..1, is a near-duplicate.
        n: Units in a run.
    """

    def __init__(self, threshold: float, n: int):
        self.threshold, self.n = threshold, n
        # More rows give fewer candidates to compare, but miss more pairs
        rows = max(r for r in ROWS if _misses(threshold, r) <= MISSED)
        self._index = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=(NUM_PERMUTATIONS // rows, rows))
        self._signatures: list[MinHash] = []

    def is_new(self, text: str) -> bool:
        """Return whether the text is new: no near-duplicate of a text in the index.

        A new text is added to the index. A text without units is always new, and is not added.
        """
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
    """Return the probability that two texts of this similarity agree on no band of `rows` rows."""
    return (1 - similarity**rows) ** (NUM_PERMUTATIONS // rows)


def _digest(run):
    # MinHash needs hashes of 32 bits
    return int.from_bytes(blake2b(run, digest_size=4).digest(), "little")
