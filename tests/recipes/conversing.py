"""Configs of whole runs in conversations, shrunk until a test can run them."""

from configs import guess_small, models, tools_small


def guess_config(**fields):
    """The ConfigDict of two steps of the game over two numbers, four games each, by one dense layer."""
    return _small(guess_small.get_config(), 20, dict(turns=4, turn_length=3), fields)


def tools_config(**fields):
    """The same of long sums and the calculator, by a layer of experts. A base of few steps calls it now and
    then.
    """
    config = _small(tools_small.get_config(), 48, dict(turns=3, turn_length=12), fields)
    config.model = models.deepseek_v3_tiny(vocab_size=19)
    config.base.update(dict(num_steps=60, bias_update_speed=1e-3))
    config.group_size = 8
    return config


def _small(config, longest, limits, fields):
    config.update(dict(num_steps=2, prompts_per_step=2, group_size=4, save_every=1))
    config.model = models.qwen2_tiny(vocab_size=config.model.vocab_size) | dict(num_hidden_layers=1)
    config.base.update(dict(num_documents=400, batch_size=16, num_steps=12, bias_update_speed=0.0))
    # Muon's update takes twice as long to compile
    config.base.optimizer = dict(kind="adamw", learning_rate=1e-2, warmup_steps=1)
    config.data.num_held_out = 8
    config.rollout.update(dict(max_completion_length=longest, slots=8))
    config.conversation = limits | dict(call_steps=2)
    config.kept_groups = 4
    config.unlock()
    config.update(fields)
    return config
