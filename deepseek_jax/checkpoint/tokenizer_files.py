"""Find the tokenizer files that parameters and adapters carry, and record them.

The record, carried.json, is a file of this project.

Tests: tests/data/test_carried.py.
"""

import json
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path

from deepseek_jax.checkpoint.damage import DamagedCheckpoint, check_digests
from deepseek_jax.checkpoint.left import RECORD
from deepseek_jax.files import as_path, parse_json
from deepseek_jax.hub import TOKENIZER

VOCABULARY, CONFIG = "tokenizer.json", "tokenizer_config.json"
NAMES = (RECORD, *TOKENIZER, "*.jinja")
REMEDY = (
    "; put back a copy, or, after a change of your own, remove the field digests from carried.json"
)


def is_of_tokenizer(name: str) -> bool:
    """Return whether a file of this name in a checkpoint's folder belongs to the tokenizer."""
    return any(fnmatch(name, pattern) for pattern in NAMES)


def tokenizer_files(folder: str | Path) -> dict[str, bytes]:
    """Read the files of a folder's tokenizer, unchanged: {name: bytes}, or {} without a tokenizer.

    Raises:
        DamagedCheckpoint: As read_record does.
    """
    root = as_path(folder)
    if (root / RECORD).is_file():
        read_record(root)
    paths = (path for path in root.iterdir() if is_of_tokenizer(path.name))
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def digests_of(files: dict[str, bytes]):
    """Compute a digest of each file's content.

    Returns:
        {name: 16 hexadecimal digits}.
    """
    return {name: blake2b(content, digest_size=8).hexdigest() for name, content in files.items()}


def record_file(fields: dict, files: dict[str, bytes]) -> bytes:
    """Return the bytes of a record.

    Args:
        fields: See data.carried.CarriedRecord.
        files: {name: bytes} of the files that get a digest in the record.
    """
    return (json.dumps(fields | {"digests": digests_of(files)}, indent=2) + "\n").encode()


def read_record(folder: str | Path) -> dict:
    """Read the fields of a folder's record, and compare the files with their digests.

    Raises:
        DamagedCheckpoint: The record cannot be read, or a file is not what was saved. The message
            names the file.
    """
    root = as_path(folder)
    try:
        fields = parse_json((root / RECORD).read_text())
        saved_digests = fields.pop("digests", None) or {}
        names = [
            name for name in saved_digests if (root / name).is_file() and is_of_tokenizer(name)
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise DamagedCheckpoint(f"{root / RECORD} is damaged ({error}); put back a copy") from error
    actual_digests = digests_of({n: (root / n).read_bytes() for n in names})
    check_digests(root, actual_digests, saved_digests, REMEDY)
    return fields
