"""Several sources of documents, mixed in the proportions of their weights."""

import math
from dataclasses import dataclass
from functools import cached_property, partial

import grain
import numpy as np

from deepseek_jax.data.sources import read
from deepseek_jax.data.stored import RandomAccess


@dataclass(frozen=True)
class Mixture:
    """Documents of several sources under one numbering, one source after the other.

    Attributes:
        sources: Each gives random access to {"text": str or UTF-8 bytes}.
        weights: The sources' shares of the documents, not of the tokens; they need not add up to 1.
            Grain turns them into whole numbers, the smallest of them 100, so that a share may be
            off by a hundredth of itself.

    Raises:
        ValueError: There is no source, or not one weight for each source, or a weight that is not
            finite and above 0.
    """

    sources: tuple[RandomAccess, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if len(self.sources) != len(self.weights) or not self.sources:
            raise ValueError(
                f"weights={self.weights} of {len(self.sources)} sources: there must be one weight for "
                "each source, and at least one source."
            )
        for weight in self.weights:
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(
                    f"weights={self.weights}: {weight} is not a share; set each weight "
                    "above 0, and leave out the source that should not be read."
                )

    @cached_property
    def starts(self) -> np.ndarray:
        """int64[sources + 1]: the number of each source's first document, then of all documents."""
        return np.cumsum([0, *map(len, self.sources)])

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, index: int):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        indices = np.asarray(indices)
        owners = np.searchsorted(self.starts, indices, side="right") - 1
        documents = [None] * len(indices)
        # Read each source in one call, then put its documents where their indices were
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            source_indices = (indices[places] - self.starts[owner]).tolist()
            for place, document in zip(
                places, read(self.sources[owner], source_indices), strict=True
            ):
                documents[place] = document
        return documents

    def order(
        self,
        seed: int,
        *,
        num_epochs: int | None = None,
        reader: int = 0,
        readers: int = 1,
    ) -> grain.MapDataset:
        """Return the order in which one reader reads documents.

        Each source is shuffled and repeated separately, in another order each epoch. Each reader
        reads every readers-th document of each source, from number `reader` on.

        Args:
            seed: Seed of the shuffle.
            num_epochs: None repeats for ever. A finite run ends as soon as one source has been read
                that often, and reads no document more often than that.
            reader: The number of the reader.
            readers: The number of readers.

        Returns:
            int64[2] each, epoch and document.

        Raises:
            ValueError: A source has fewer documents than there are readers.
        """
        streams = []
        for number, (start, end) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            if end - start < readers:
                raise ValueError(
                    f"there are no documents for some of readers={readers}: source {number} has "
                    f"{end - start}, and each reader needs one; give it more documents, or lower readers."
                )
            share = grain.MapDataset.range(start + reader, end, readers)
            # Grain uses the next seeds for later epochs, so the seeds of two sources must be far apart.
            # Grain refuses seeds of 2**32 and more
            shuffled_share = share.shuffle((seed + (number << 16)) % 2**32)
            with_epoch = partial(_with_epoch, length=len(share))
            streams.append(shuffled_share.repeat(num_epochs).map_with_index(with_epoch))
        return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, self.weights)


def _with_epoch(position, document, *, length):
    return np.array([position // length, document])
