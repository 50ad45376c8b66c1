"""A tokenizer of bytes, for tiny runs on any text."""

import tokenizers

from deepseek_jax.data.tokenizer import Tokenizer, id_of

SPECIAL = ("<pad>", "<eos>", "<fim_begin>", "<fim_hole>", "<fim_end>")


def byte_tokenizer() -> Tokenizer:
    """Build a tokenizer in which each byte of UTF-8 is a token and its value the id.

    After the bytes come pad, eos and three fill-in-the-middle tokens: 261 ids. decode(encode(text))
    is exactly the text, even if it contains the names of special tokens. Bytes that are not UTF-8
    decode to U+FFFD.
    """
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # ByteLevel writes a byte as one character: printable bytes as themselves, the others from U+0100 on
    characters = sorted(byte_level.alphabet())
    plain = [ord(c) for c in characters if ord(c) < 256]
    others = [byte for byte in range(256) if byte not in plain]
    vocabulary = dict(zip(characters, plain + others, strict=True))
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = byte_level, tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    # "<eos>" in a text is ordinary text
    backend.encode_special_tokens = True
    pad_id, eos_id, begin, hole, end = (id_of(backend, token) for token in SPECIAL)
    return Tokenizer(backend, eos_id=eos_id, pad_id=pad_id, fim_ids=(begin, hole, end))
