"""Distillation: train a student on the outputs of one teacher or of many.

This room has the loss terms, the targets and their cache on disk, and the alignment of two
tokenizers. A student learns from texts or from its own samples.
"""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Objective": "objective",
        "TaughtSettings": "teacher_settings",
        "Teacher": "teachers",
        "Term": "chunks",
        "forward_kl": "divergences",
        "hard_loss": "divergences",
        "hidden_state_loss": "feature_distillation",
        "jsd": "divergences",
        "learn_from_teachers": "taught",
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
