"""Writer and reader of the tokenizer and template in a folder of parameters or an adapter.

A folder that a run leaves "carries" both, so that later runs make the same prompts.
"""

import dataclasses
import json
import pathlib
import tempfile
from pathlib import Path
from typing import Literal

import tokenizers

from deepseek_jax.checkpoint.damage import DamagedCheckpoint
from deepseek_jax.checkpoint.left import RECORD
from deepseek_jax.checkpoint.tokenizer_files import (
    CONFIG,
    VOCABULARY,
    is_of_tokenizer,
    read_record,
    record_file,
    tokenizer_files,
)
from deepseek_jax.data.chat import Template
from deepseek_jax.data.deepseek_v32 import DeepseekV32Chat
from deepseek_jax.data.gguf_tokenizer import gguf_tokenizer
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.files import as_path, staged
from deepseek_jax.settings import Natural, build

# What renders a chat: the template of tokenizer_config.json, or data.deepseek_v32
Renders = Literal["chat_template", "deepseek_v32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CarriedRecord:
    """The record, carried.json, next to the files of a tokenizer.

    Attributes:
        template: How questions became prompts in training, see `data.chat`.
        eos_id, pad_id, bos_id, fim_ids: See `data.tokenizer.Tokenizer`.
        encode_special_tokens: True if the name of a special token in a text is encoded as plain
            text.
        chat: What renders a chat; None for nothing.
    """

    template: Template
    eos_id: Natural
    pad_id: Natural
    bos_id: Natural | None
    fim_ids: tuple[Natural, Natural, Natural] | None
    encode_special_tokens: bool
    chat: Renders | None

    def ids(self):
        """Return all special ids, without those that are None."""
        bos = () if self.bos_id is None else (self.bos_id,)
        return self.eos_id, self.pad_id, *bos, *(self.fim_ids or ())


def carried_files(tokenizer: Tokenizer, template: str) -> dict[str, bytes]:
    """Return {name: bytes} of the files that carry a tokenizer and the template used with it."""
    chat: Renders | None = None
    if tokenizer.chat is not None:
        chat = getattr(tokenizer.chat, "carried_as", "chat_template")
    files = _of_transformers(tokenizer, chat)
    about = CarriedRecord(
        template=template,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        fim_ids=tokenizer.fim_ids,
        encode_special_tokens=tokenizer.backend.encode_special_tokens,
        chat=chat,
    )
    return files | {RECORD: record_file(dataclasses.asdict(about), files)}


def _of_transformers(tokenizer, chat):
    """Return the two files that transformers reads, as {name: bytes}.

    Args:
        tokenizer: The Tokenizer to write.
        chat: See `CarriedRecord`.
    """
    if chat != "chat_template":
        named = {"eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        named |= {} if tokenizer.bos_id is None else {"bos_token": tokenizer.bos_id}
        fields = {name: tokenizer.backend.id_to_token(token) for name, token in named.items()}
        if tokenizer.backend.encode_special_tokens:
            fields["split_special_tokens"] = True
    else:
        # transformers writes only to local folders; the chat template goes into the config
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.chat.save_pretrained(folder, save_jinja_files=False)
            fields = json.loads(pathlib.Path(folder, CONFIG).read_text())
    # The class that takes tokenizer.json as it is, in every version of transformers
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    return {VOCABULARY: tokenizer.backend.to_str().encode(), CONFIG: text.encode()}


def files_of(path: str | Path) -> dict[str, bytes]:
    """Return {name: bytes} of a checkpoint's tokenizer files.

    From a folder they come unchanged. From a .gguf file they come as transformers writes them.

    Raises:
        ValueError: As `tokenizer_files` and `gguf_tokenizer` do.
    """
    source = as_path(path)
    if source.is_dir():
        return tokenizer_files(source)
    with tempfile.TemporaryDirectory() as folder:
        gguf_tokenizer(staged(source)).save_pretrained(folder)
        return {file.name: file.read_bytes() for file in pathlib.Path(folder).iterdir()}


def carried_template(path: str | Path) -> str | None:
    """Return the template that a folder carries, or None if it has no record.

    Raises:
        DamagedCheckpoint: The record is damaged.
    """
    if not (as_path(path) / RECORD).is_file():
        return None
    return _record(path).template


def carried_tokenizer(path: str | Path) -> Tokenizer:
    """Return the Tokenizer that a folder with a record carries.

    Raises:
        DamagedCheckpoint: A file is not the one that was saved, or it cannot be read.
    """
    about, folder = _record(path), as_path(path)
    try:
        backend = tokenizers.Tokenizer.from_str((folder / VOCABULARY).read_text())
        chat = None if about.chat is None else _chat(about, folder, backend)
    # Any exception: the library raises no narrower one, and without digests in the record any change of the
    # files gets this far
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise DamagedCheckpoint(
            f"{folder} is damaged: cannot read its tokenizer ({cause[:300]}); put back a copy"
        ) from error
    # tokenizer.json has no field for it
    backend.encode_special_tokens = about.encode_special_tokens
    unknown = [i for i in about.ids() if backend.id_to_token(i) is None]
    if unknown:
        raise DamagedCheckpoint(
            f"{folder / RECORD} is damaged: {VOCABULARY} has no tokens {unknown}; put back a copy"
        )
    ids = {name: getattr(about, name) for name in ("eos_id", "pad_id", "bos_id", "fim_ids")}
    return Tokenizer(backend, chat=chat, **ids)


def _chat(about, folder, backend):
    if about.chat == "deepseek_v32":
        return DeepseekV32Chat(backend)
    # Imported here: it takes seconds, and the toy worlds do not need it
    import transformers

    # By this class, not AutoTokenizer: it reads the two files and runs no code
    return transformers.PreTrainedTokenizerFast.from_pretrained(staged(folder, is_of_tokenizer))


def _record(path):
    fields = read_record(path)
    try:
        return build(CarriedRecord, fields, RECORD)
    except ValueError as error:
        raise DamagedCheckpoint(
            f"{as_path(path) / RECORD} is damaged: {error}; put back a copy"
        ) from error
