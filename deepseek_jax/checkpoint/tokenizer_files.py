"""The files by which a folder of parameters or of an adapter carries its tokenizer, and the record of ours
beside them.
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


def is_of_tokenizer(name: str):
    """Whether a file of this name in a checkpoint's folder is of its tokenizer."""
    return any(fnmatch(name, pattern) for pattern in NAMES)


def tokenizer_files(folder: str | Path):
    """{name: bytes} of the files of a folder's tokenizer, as they stand; {} where it has none.

    Raises DamagedCheckpoint as read_record does.
    """
    folder = as_path(folder)
    if (folder / RECORD).is_file():
        read_record(folder)
    found = (path for path in folder.iterdir() if is_of_tokenizer(path.name))
    return {path.name: path.read_bytes() for path in found if path.is_file()}


def digests_of(files: dict[str, bytes]):
    """{name: 16 hexadecimal digits} for the content of each file."""
    return {name: blake2b(text, digest_size=8).hexdigest() for name, text in files.items()}


def record_file(fields: dict, files: dict[str, bytes]):
    """The bytes of a record. fields: see data.carried.Carried. files: those that it has digests of."""
    return (json.dumps(fields | {"digests": digests_of(files)}, indent=2) + "\n").encode()


def read_record(folder: str | Path):
    """The fields of a folder's record, as a dict. Raises DamagedCheckpoint, with the file, where it cannot be
    read, and where a file is not the one that was saved.
    """
    folder = as_path(folder)
    try:
        fields = parse_json((folder / RECORD).read_text())
        saved = fields.pop("digests", None) or {}
        names = [name for name in saved if (folder / name).is_file() and is_of_tokenizer(name)]
    except (ValueError, AttributeError, TypeError) as error:
        raise DamagedCheckpoint(
            f"{folder / RECORD} is damaged ({error}); put back a copy"
        ) from error
    # A file that is missing has no digest
    found = dict.fromkeys(saved) | digests_of({n: (folder / n).read_bytes() for n in names})
    check_digests(folder, found, saved, REMEDY)
    return fields
