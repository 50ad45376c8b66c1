"""Examples in, fixed-shape batches out: corpora, questions, tokenizers, prompts and packing."""
