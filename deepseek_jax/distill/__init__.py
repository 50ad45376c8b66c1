"""A student after its teacher: the objective, its losses, targets, their cache, and the update."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Objective": "objective",
        "cross_tokenizer_distillation": "cross_tokenizer",
        "dense_distillation": "logit_distillation",
        "hard_loss": "logit_distillation",
        "hidden_state_loss": "feature_distillation",
        "relation_loss": "relation_distillation",
        "soft_loss": "logit_distillation",
        "top_k_distillation": "logit_distillation",
        "train_student": "update",
    },
)
