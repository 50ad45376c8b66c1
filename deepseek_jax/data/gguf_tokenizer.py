"""The tokenizer of a .gguf file: byte-level BPE, built from the file's metadata."""

from pathlib import Path

import gguf
import tokenizers

from deepseek_jax.checkpoint.gguf_file import read_gguf

PREFIX = "tokenizer.ggml."
NEEDED = ("model", "pre", "tokens", "merges", "token_type", "eos_token_id")


def gguf_tokenizer(path: str | Path):
    """Return the transformers tokenizer of a .gguf file, with its chat template.

    It can be used, or saved by save_pretrained. The metadata name the pre-tokenizer, which first
    splits a text. Only "smollm" is supported, as llama.cpp reads it: each digit is split off, and
    the rest is split as in GPT-2. The reader of transformers, which needs PyTorch, only splits as
    GPT-2 does: of several spaces before a digit, it splits off the last.

    Raises:
        ValueError: The file is not GGUF, is truncated or has no tokenizer; or it names a model
            other than byte-level BPE or another pre-tokenizer, which the message then quotes.
    """
    # Imported here: it takes seconds, and the toy worlds do not need it
    import transformers

    metadata = _metadata(path)
    special = {
        name: metadata["tokens"][metadata[key]]
        for name, key in {
            "bos_token": "bos_token_id",
            "eos_token": "eos_token_id",
            "unk_token": "unknown_token_id",
            "pad_token": "padding_token_id",
        }.items()
        if key in metadata
    }
    backend = _backend(metadata)
    if metadata.get("add_bos_token"):
        bos = special["bos_token"]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, metadata["bos_token_id"])]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=metadata["chat_template"], **special
    )


def _backend(metadata):
    """Build the tokenizers.Tokenizer.

    It matches control tokens and user-defined tokens whole in a text.
    """
    tokens = metadata["tokens"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in metadata["merges"]]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    gpt2 = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, gpt2])
    backend.decoder = tokenizers.decoders.ByteLevel()
    for kind, add in (
        (gguf.TokenType.CONTROL, backend.add_special_tokens),
        (gguf.TokenType.USER_DEFINED, backend.add_tokens),
    ):
        whole = [t for t, k in zip(tokens, metadata["token_type"], strict=True) if k == kind]
        add([tokenizers.AddedToken(token, normalized=False) for token in whole])
    return backend


def _metadata(path):
    """Return the file's metadata about its tokenizer, by the last part of the key.

    chat_template may be None.
    """
    whole = read_gguf(path).metadata
    metadata = {
        key.removeprefix(PREFIX): value for key, value in whole.items() if key.startswith(PREFIX)
    }
    for key, allowed in (("model", "gpt2"), ("pre", "smollm")):
        # A missing key passes here: the error below names all that are missing
        if metadata.get(key, allowed) != allowed:
            raise ValueError(
                f"{path}: {PREFIX}{key}={metadata[key]!r} is not read, only {allowed!r}; "
                "give the Hugging Face folder"
            )
    needed = NEEDED + (("bos_token_id",) if metadata.get("add_bos_token") else ())
    missing = [PREFIX + key for key in needed if key not in metadata]
    if missing:
        raise ValueError(f"{path} lacks the metadata {', '.join(missing)}")
    return metadata | {"chat_template": whole.get("tokenizer.chat_template")}
