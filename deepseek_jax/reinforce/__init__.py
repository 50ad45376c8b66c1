"""GRPO: its source of groups, its update, its reward models and its scenarios."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "GroupSource": "groups",
        "ReinforceSettings": "settings",
        "RolloutSettings": "settings",
        "ScenarioRewards": "scenarios",
        "group_batch": "batch",
        "load_model_rewards": "model_rewards",
        "make_groups": "groups",
        "reinforce": "grpo",
    },
)
