"""Learning from a policy's own samples: GRPO with its source of groups, update, reward models and scenarios;
and distillation from many teachers.
"""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "GroupSource": "groups",
        "ReinforceSettings": "settings",
        "RolloutSettings": "settings",
        "ScenarioRewards": "scenarios",
        "TaughtSettings": "teacher_settings",
        "Teacher": "teachers",
        "group_batch": "batch",
        "learn_from_teachers": "taught",
        "load_model_rewards": "model_rewards",
        "make_groups": "groups",
        "make_grpo_loss": "update",
        "reinforce": "grpo",
    },
)
