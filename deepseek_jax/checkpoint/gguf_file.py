"""The contents of a .gguf file, for its readers: the config, the weights and the tokenizer."""

import functools
from pathlib import Path
from typing import NamedTuple

import gguf


class GgufFile(NamedTuple):
    """metadata: key -> value. tensors: the gguf library's, whose data stay on disk until they are read."""

    metadata: dict
    tensors: list[gguf.ReaderTensor]


def read_gguf(path: str | Path) -> GgufFile:
    """Read a file's metadata, and list its tensors. Raises ValueError where it is not GGUF or not whole."""
    stat = Path(path).stat()
    return _read(Path(path), stat.st_size, stat.st_mtime_ns)


# The library goes through a vocabulary token by token, which takes seconds, and a run has several readers
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
