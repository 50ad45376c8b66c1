"""Whole things that a case of bad_inputs.py copies and damages, and the ways to write and to damage them."""

import json
import shutil
from pathlib import Path

import ml_dtypes  # noqa: F401  # numpy learns bfloat16
import numpy as np
import safetensors.numpy
import tensorflow_datasets as tfds
import transformers

from deepseek_jax.checkpoint.hf_config import config_json
from deepseek_jax.checkpoint.hf_names import tensors
from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.models import ModelConfig

CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MODEL = dict(
    model_type="llama",
    vocab_size=261,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=128,
    eos_token_id=257,
)


class Pages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """40 documents and conversations in two files."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        text = tfds.features.Text()
        message = tfds.features.Sequence({"role": text, "content": text})
        features = tfds.features.FeaturesDict({"text": text, "messages": message})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(40):
            messages = [
                {"role": "user", "content": f"{number}?"},
                {"role": "assistant", "content": "1"},
            ]
            yield number, {"text": f"page {number}", "messages": messages}


def goods(folder: Path):
    """Whole things in a folder: model/, a checkpoint with its tokenizer; pages/, a TFDS dataset."""
    config = ModelConfig(**MODEL)
    arrays = {
        name: np.zeros(places[0].turn.shape, np.float32) for name, places in tensors(config).items()
    }
    model = folder / "model"
    model.mkdir()
    safetensors.numpy.save_file(arrays, model / "model.safetensors", {"format": "pt"})
    (model / "config.json").write_text(json.dumps(config_json(config, dtype="float32")))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend,
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=CHAT,
    )
    tokenizer.save_pretrained(model)
    builder = Pages(data_dir=folder / "tfds", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    shutil.copytree(builder.data_path, folder / "pages")


def write(name, content):
    """prepare: a file with this content, text or bytes."""

    def prepare(good, here):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def lines(name, *records):
    """prepare: a jsonl file of records; a str is a line as it stands."""
    return write(
        name, "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)
    )


def copied(name, *changes):
    """prepare: a copy of one of the whole things, then changes(folder)."""

    def prepare(good, here):
        shutil.copytree(good / name, here / name)
        for change in changes:
            change(here / name)

    return prepare


def without(pattern):
    """A change of a folder: its files of this pattern are removed."""
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def cut(pattern, share):
    """A change of a folder: the last of its files of this pattern is cut to a share of its bytes."""

    def change(folder):
        path = sorted(folder.glob(pattern))[-1]
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return change


def flipped(pattern, share):
    """A change of a folder: one byte, this share of the way through a file."""

    def change(folder):
        path = sorted(folder.glob(pattern))[-1]
        content = bytearray(path.read_bytes())
        content[int(len(content) * share)] ^= 255
        path.write_bytes(content)

    return change


def replaced(name, content):
    """A change of a folder: a file with other content."""
    return lambda folder: write(name, content)(None, folder)


def fields(name, **values):
    """A change of a folder: fields of a JSON file; None removes one."""

    def change(folder):
        path = folder / name
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def empty(name):
    """prepare: an empty folder."""
    return lambda good, here: (here / name).mkdir()


def both(*prepares):
    """prepare: each of them."""
    return lambda good, here: [prepare(good, here) for prepare in prepares]


def swept(returned):
    """prepare: sweep.py, whose sweep(config) returns this."""
    return write("sweep.py", f"def sweep(config):\n    return {returned}\n")


def config_file(text):
    """prepare: mine.py, a config file."""
    return write("mine.py", text)
