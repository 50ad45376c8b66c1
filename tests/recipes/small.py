"""configs/grpo_small.py, shrunk until a test can run it, and one device to run it on."""

import jax

from configs.grpo_small import get_config
from deepseek_jax.parallel import make_mesh


def small_config(**fields):
    """The ConfigDict of two steps over two prompts of four; fields: others of GrpoSettings."""
    config = get_config()
    config.update(dict(num_steps=2, prompts_per_step=2, group_size=4, save_every=1))
    config.base.update(dict(num_documents=400, batch_size=8, num_steps=5))
    config.base.optimizer.warmup_steps = 1
    config.data.num_held_out = 8
    config.rollout.update(dict(max_completion_length=12, slots=8))
    config.unlock()
    with config.ignore_type():  # pairs in the place of a number
        config.update(fields)
    return config


def one_device():
    """A mesh of a single one of conftest's eight devices."""
    return make_mesh(data=1, devices=jax.devices()[:1])
