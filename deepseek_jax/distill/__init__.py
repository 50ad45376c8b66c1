"""Distillation of a student from its teacher: objective, losses, targets, their cache, and the update."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Objective": "objective",
        "Term": "chunks",
        "forward_kl": "divergences",
        "hard_loss": "divergences",
        "hidden_state_loss": "feature_distillation",
        "jsd": "divergences",
        "mean_over_tokens": "chunks",
        "relation_loss": "relation_distillation",
        "reverse_kl": "divergences",
        "soft_loss": "divergences",
        "teacher_kl": "many_teachers",
        "top_k_logprobs": "top_k",
        "top_k_loss": "top_k",
        "train_student": "update",
    },
)
