"""Data from a teacher: ask, vary, filter, deduplicate."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "NearDuplicates": "near_duplicates",
        "Teacher": "teacher",
        "sample_accepted": "rejection",
        "write_conversations": "generated",
        "write_sifted": "sift",
    },
)
