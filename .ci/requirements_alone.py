"""Check what requirements.txt alone gives: each module is imported and each kind of chat template rendered.

.ci/run starts it before the test extra is installed, which brings what would hide a missing package.
"""

import ast
import dataclasses
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

import configs
import deepseek_jax
import launch
from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.chat import render_conversation
from deepseek_jax.data.deepseek_v32 import DeepseekV32Chat
from deepseek_jax.data.read_tokenizer import deepseek_tokenizer, load_tokenizer

# Functions import these after they have asked for them, or where somebody else has installed them
OPTIONAL = {
    "IPython": "a notebook brings it",
    "pydantic_monty": 'the extra "code"',
    "wandb": 'the extra "wandb"',
}
TALK = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "It is 5"}]


def import_all():
    """Import every module of the package, of launch/ and of configs/: -> their number.

    One may say that an optional package is missing, as environments.python does before a run.
    """
    names = [
        module.name
        for package in (deepseek_jax, launch, configs)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if not any(package in str(error) for package in OPTIONAL):
                raise
    return len(names)


def missing_packages():
    """{package: file}: what an import names, also one within a function, and is not there."""
    missing = {}
    for package in (deepseek_jax, launch, configs):
        for path in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                for name in {name.split(".")[0] for name in names} - OPTIONAL.keys():
                    if importlib.util.find_spec(name) is None:
                        missing[name] = path
    return missing


def render_all():
    """Render a conversation by each kind of template: -> the number of its tokens by each.

    Raises AssertionError where a text has lost the question or the answer.
    """
    deepseek = deepseek_tokenizer()
    kinds = {
        "of a GGUF file": (load_tokenizer(smollm2_gguf()), "chat"),
        "of a folder": (deepseek, "chat"),
        "V3.2's": (dataclasses.replace(deepseek, chat=DeepseekV32Chat(deepseek.backend)), "chat"),
        "r1_zero": (deepseek, "r1_zero"),
        "own": (deepseek, "Q: {question}\n"),
    }
    lengths = {}
    for kind, (tokenizer, template) in kinds.items():
        ids, _ = render_conversation(tokenizer, TALK, template=template)
        text = tokenizer.decode(ids)
        assert all(message["content"] in text for message in TALK), (kind, text)
        lengths[kind] = len(ids)
    return lengths


if __name__ == "__main__":
    print(f"{import_all()} modules imported")
    if missing := missing_packages():
        sys.exit(f"error: requirements.txt has not what these files import: {missing}")
    print(f"chat templates, and tokens by each: {render_all()}")
