"""TFDS's shuffle of the examples of a dataset, in little memory and without TensorFlow.

TFDS 4.9 sorts examples by hashes of their keys: up to a gigabyte in memory, more in files that it opens by
TensorFlow, which is not installed. Here the files are plain ones, and begin earlier; the order is the same.
"""

import struct
from pathlib import Path

from tensorflow_datasets.core import shuffle

# Examples are kept in memory up to here
SHUFFLED_BYTES = 64 * 2**20
# Files that are open at once; each is sorted in memory
BUCKETS = 256
# What stands before an example in a file: its key, and its number of bytes
HEAD = struct.Struct("=16sQ")


def shuffle_on_disk():
    """Let the builders of TFDS in this process shuffle in this way."""
    shuffle.MAX_MEM_BUFFER_SIZE, shuffle.BUCKETS_NUMBER = SHUFFLED_BYTES, BUCKETS
    shuffle._Bucket = Bucket


class Bucket:
    """Examples with neighbouring hashes in a file, as shuffle._Bucket."""

    def __init__(self, path):
        self._path, self._file, self._length = Path(path), None, 0

    def __len__(self):
        return self._length

    def add(self, key: int, data: bytes):
        """Write one example."""
        if self._file is None:
            self._file = open(self._path, "wb")
        self._file.write(HEAD.pack(key.to_bytes(16), len(data)) + data)
        self._length += 1

    def read_values(self):
        """Yield (key, data) of all examples, in the order in which they were added."""
        if self._file is None:
            return
        self._file.close()
        with open(self._path, "rb") as file:
            for _ in range(self._length):
                key, size = HEAD.unpack(file.read(HEAD.size))
                yield int.from_bytes(key), file.read(size)

    def del_file(self):
        """Remove the file."""
        self._path.unlink(missing_ok=True)
