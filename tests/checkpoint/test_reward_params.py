"""A reward model is saved and loaded."""

import jax
import numpy as np
import pytest

from deepseek_jax.checkpoint.reward_params import load_reward_model, save_reward_model
from deepseek_jax.models.reward import reward_config, reward_params
from deepseek_jax.parallel import make_mesh
from tests.tiny import tiny_model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gqa", "mtp"])
def test_a_reward_model_comes_back_on_another_mesh(kind, tmp_path):
    """Oracle: the saved model, bit for bit, and its config except for fields that only say how to run it."""
    config, params = tiny_model(kind)
    model = reward_params(config, params, make_mesh(devices=jax.devices()[:1]), jax.random.key(3))
    about = {"kind": "safety", "template": "{question}\n"}
    save_reward_model(tmp_path / "it", reward_config(config), model, about)
    mesh = make_mesh(devices=jax.devices()[:4], fsdp=2)
    restored = load_reward_model(tmp_path / "it", mesh)
    assert restored[0] == reward_config(config) and restored[2] == about
    jax.tree.map(np.testing.assert_array_equal, restored[1], model)
    assert restored[1]["head"]["weight"].sharding.spec == jax.P(("fsdp", "context"))
    with pytest.raises(ValueError, match="not empty"):
        save_reward_model(tmp_path / "it", reward_config(config), model, about)


def test_a_folder_without_a_reward_model_is_refused(tmp_path):
    """Oracle: by hand."""
    with pytest.raises(ValueError, match="no reward model in .*there is no reward_model.json"):
        load_reward_model(tmp_path, make_mesh(devices=jax.devices()[:1]))
