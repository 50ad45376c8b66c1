"""The toy worlds, each whole: words, corpus, tokenizer, tasks and its rewards."""
