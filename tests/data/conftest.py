"""The real tokenizers that several tests here read; loading one takes seconds, so once."""

import copy
import dataclasses
import importlib.util
from pathlib import Path

import pytest

from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import deepseek_tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def smollm2():
    return load_tokenizer(smollm2_gguf())


@pytest.fixture(scope="session")
def deepseek():
    return deepseek_tokenizer()


# Markers of the templates that TRL ships, as Qwen's and Llama's vocabularies have them
HERMES = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
LLAMA = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"]


def with_template(tokenizer, name, plain=(), special=()):
    """The tokenizer with a chat template of TRL's wheel, and with markers added."""
    folder = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
    chat = copy.deepcopy(tokenizer.chat)
    chat.add_tokens(list(plain))
    chat.add_tokens(list(special), special_tokens=True)
    chat.chat_template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    return dataclasses.replace(tokenizer, backend=chat.backend_tokenizer, chat=chat)


@pytest.fixture(scope="session")
def templates(smollm2, deepseek):
    """Tokenizers with real merges, by the name of a chat template: TRL's, and the tokenizer's own."""
    return {
        "qwen2_5": with_template(smollm2, "qwen2_5", HERMES),
        "qwen3": with_template(smollm2, "qwen3", HERMES),
        # Whose two line ends are one token, as in Llama's, also where an answer follows
        "llama3_1": with_template(deepseek, "llama3_1", special=LLAMA),
        "deepseekv3": with_template(deepseek, "deepseekv3"),
        "deepseek_r1_distill": with_template(deepseek, "deepseek_r1_distill"),
        "deepseek": deepseek,
        "smollm2": smollm2,
    }
