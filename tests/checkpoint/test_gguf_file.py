"""A .gguf file is gone through once for all its readers, and again once it has changed."""

import gguf

from deepseek_jax.checkpoint import gguf_file
from deepseek_jax.checkpoint.gguf_file import read_gguf
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.gguf_tokenizer import gguf_tokenizer
from tests.data.test_gguf_tokenizer import write_gguf


def test_config_and_tokenizer_go_through_a_file_once(monkeypatch):
    """Oracle: a count of the library's readers."""
    gguf_file._read.cache_clear()
    opened, reader = [], gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: opened.append(path) or reader(path))
    config, tokenizer = read_any_config(smollm2_gguf()), gguf_tokenizer(smollm2_gguf())
    assert len(tokenizer) == config.vocab_size and read_any_config(smollm2_gguf()) == config
    assert len(opened) == 1


def test_a_file_that_has_changed_is_read_again(tmp_path):
    """Oracle: the file's own metadata, before and after."""
    path = tmp_path / "a.gguf"
    for added in (False, True):
        write_gguf(path, add_bos_token=added)
        assert read_gguf(path).metadata["tokenizer.ggml.add_bos_token"] is added
