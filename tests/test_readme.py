"""The README's example in Python, as it stands there."""

import re
from pathlib import Path

from deepseek_jax.data.tokenizer import load_tokenizer, smollm2_gguf
from tests.models.families import write_tiny_checkpoint

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_example_decodes_what_was_sampled_and_no_more(tmp_path, monkeypatch, capsys):
    """Oracle: its own rollout by hand, of a random model with SmolLM2's tokenizer, whose every second id
    ends a completion: what lies behind the end is not decoded.
    """
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    tokenizer, folder = load_tokenizer(smollm2_gguf()), tmp_path / "DeepSeek-V2-Lite"
    size = tokenizer.vocab_size
    sizes = dict(vocab_size=size, eos_token_id=list(range(0, size, 2)))
    write_tiny_checkpoint("deepseek_v2", folder, **sizes)
    tokenizer.chat.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    seen = {}
    exec(example, seen)
    ids, mask = seen["out"].completion_ids[0], seen["out"].completion_mask[0]
    assert not mask.all()
    assert capsys.readouterr().out == tokenizer.decode(ids[mask]) + "\n"
