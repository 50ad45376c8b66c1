"""The content of a .gguf file, for the readers of its config, its weights and its tokenizer."""

import functools
from pathlib import Path
from typing import NamedTuple

import gguf


class GgufFile(NamedTuple):
    """The metadata and the tensors of a .gguf file.

    Attributes:
        metadata: {key: value}.
        tensors: Tensors of the gguf library. Their data stay on disk until they are read.
    """

    metadata: dict
    tensors: list[gguf.ReaderTensor]


def read_gguf(path: str | Path) -> GgufFile:
    """Read the metadata of a .gguf file, and list its tensors.

    Raises:
        ValueError: The file is not GGUF, or is cut short.
    """
    stat = Path(path).stat()
    return _read(Path(path), stat.st_size, stat.st_mtime_ns)


# Cached: the library reads a vocabulary token by token, in seconds, and a run has several readers
@functools.lru_cache(maxsize=2)
def _read(path, _size, _modified):
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{path} is not a whole GGUF file: {error}; take another copy of it"
        ) from error
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    return GgufFile(metadata, reader.tensors)
