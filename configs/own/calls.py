"""Word problems after two examples of how Python is called: what configs/tools_smollm2.py asks."""

from deepseek_jax.worlds.arithmetic.tasks import word_arithmetic_task

# SmolLM2 was trained on no tools, and follows what it sees more than what it is told
SHOWN = (
    ("Lea has 31 marbles and buys 16 more. How many marbles does Lea have now?", "31 + 16", "47"),
    ("What is 58 - 23?", "58 - 23", "35"),
)


def word_problems(seed, num_held_out):
    """(questions to train on, held-out questions), each a chat that begins with the examples."""
    task = word_arithmetic_task(seed, num_held_out)
    return [[_with_examples(e) for e in examples] for examples in (task.train, task.held_out)]


def _with_examples(example):
    turns = [
        turn
        for question, term, answer in SHOWN
        for turn in (question, f'python("print({term})")', answer, f"The answer is {answer}.")
    ]
    roles = ("user", "assistant") * (len(turns) // 2)
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
    return example | {"question": [*messages, {"role": "user", "content": example["question"]}]}
