"""Turn examples into fixed-shape batches: corpora, questions, tokenizers, prompts and packing."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Task": "tasks",
        "Tokenizer": "tokenizer",
        "file_task": "tasks",
        "load_tokenizer": "read_tokenizer",
        "pack": "packing",
        "pack_conversations": "conversations",
        "read_conversations": "messages",
        "read_questions": "questions",
        "render_conversation": "chat",
        "render_prompt": "chat",
    },
)
