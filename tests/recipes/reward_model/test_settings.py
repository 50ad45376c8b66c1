"""Settings of reward models and judges: what they refuse, and what a config may leave out."""

import pytest

from configs import judge_small
from deepseek_jax.recipes.reward_model.settings import JudgeDataSettings, JudgeSettings
from deepseek_jax.settings import build


def judge_settings(**data):
    config = judge_small.get_config()
    config.batch_size = 8
    config.data.unlock()
    config.data.update(data)
    return build(JudgeSettings, config, "config")


@pytest.mark.parametrize(
    "data, wrong",
    [
        (dict(path="pairs.jsonl"), r"data\.path='pairs\.jsonl': judgements can be written only"),
        (dict(readers=3), r"data\.readers=3 does not divide .* batch_size=8; set readers"),
    ],
)
def test_a_judge_learns_the_small_worlds_pairs_in_equal_shares(data, wrong):
    """Oracle: the words that a reader needs: the field, its value and what to do."""
    with pytest.raises(ValueError, match=wrong):
        judge_settings(**data)
    assert judge_settings(readers=4).data.readers == 4


def test_a_judges_rows_are_packed_by_one_reader_unless_a_config_says_more():
    """Oracle: by hand: the settings of a config without a block `data`."""
    data = JudgeDataSettings()
    assert (data.packing, data.readers, data.path) == (True, 1, None)
