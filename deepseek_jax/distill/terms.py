"""The terms of a student's objective, and what each of them needs."""

# THE list of terms. Each one except l2 is a mean over the tokens in the loss
TERMS = {
    "soft": "the teacher's distribution: divergences.soft_loss, or top_k.top_k_loss from a cache",
    "hard": "the text's own tokens; on a teacher's text: sequence-level distillation (arXiv:1606.07947)",
    "hidden": "the teacher's hidden states: feature_distillation",
    "relations": "the last attention's queries, keys and values: relation_distillation",
    "matched": "a teacher with another tokenizer, on tokens that align exactly: cross_tokenizer",
    "sorted": "a teacher with another tokenizer, on the other aligned tokens: cross_tokenizer",
    "on_policy": "the teacher's distribution on text that the student samples (arXiv:2306.13649)",
    "l2": "half the sum of the squared weights, norms and biases left out",
}
# Terms that need logits of the batch's own rows
OF_LOGITS = ("soft", "hard", "matched", "sorted")
OF_FEATURES = ("hidden", "relations")
# Terms that need the batch's own rows
OF_DATA = OF_LOGITS + OF_FEATURES
OF_TEACHER = ("soft", "hidden", "relations", "matched", "sorted", "on_policy")
