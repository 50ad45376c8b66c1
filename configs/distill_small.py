"""Distillation in miniature: from a tiny DeepSeek-V3 to tiny students like Qwen and Llama.

python launch/train.py --config=configs/distill_small.py   # teacher: runs/r1_small, else trained first
python launch/train.py --config=configs/distill_small.py:teacher=FOLDER   # teacher=made trains one first
python launch/train.py --config=configs/distill_small.py:letters   # students whose tokens are letters
python launch/train.py --config=configs/distill_small.py:plateau   # the rate follows the held-out loss

The teacher solves puzzles. The students have the architectures of Qwen and Llama. They learn from
the teacher's right answers, its distributions, its hidden states and its attention.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import models, r1_zero_small
from configs.common import parse_arg

# The final params of configs/r1_small.py
R1 = "runs/r1_small/scenarios/params"
MADE = "made"
VOCAB_SIZE = r1_zero_small.VOCAB_SIZE
# Tokens of a row, and of a completion
LENGTH = 64
# The same for students that have letters as tokens
LETTERS = 192
WEIGHTS = dict(soft=0.5, hard=0.5, hidden=0.1, relations=0.1, l2=1e-5)
ACROSS = dict(matched=0.5, sorted=0.5, hard=0.5, l2=1e-5)


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, teacher="", letters=False, plateau=False)
    c = ConfigDict(dict(recipe="distill", seed=arg.seed, template="r1_zero"))
    teacher = arg.teacher or (R1 if Path(R1).is_dir() else MADE)
    c.teacher = made_teacher() if teacher == MADE else dict(path=teacher)
    c.text = dict(num_prompts=1536, samples_per_prompt=4, max_per_prompt=1, temperature=1.0)
    c.text.max_completion_length = LENGTH
    # The teacher writes the answers to puzzles. A request has one good answer, which the world
    # supplies
    c.tasks = dict(sum=dict(weight=1.0), countdown=dict(weight=1.0), requests=dict(weight=0.5))
    # Above 1, the task with fewer texts is drawn more often than its share of the texts
    c.mixing_temperature = 2.0
    # Losses between two tokenizers can align only one text a row, so rows are not packed
    c.packing = not arg.letters
    c.starts = {
        "qwen": start(models.qwen2_tiny(VOCAB_SIZE), letters=arg.letters),
        "llama": start(models.llama_tiny(VOCAB_SIZE), letters=arg.letters),
    }
    weights = ACROSS if arg.letters else WEIGHTS
    c.students = {name: student(name, weights=weights) for name in c.starts}
    c.evaluation = dict(num_questions=96, samples=4, max_completion_length=LENGTH)
    if arg.plateau:
        for student_config in c.students.values():
            student_config.optimizer.schedule = "constant"
            # Halve the rate if the loss at an evaluation, every 50 updates, has not fallen by a
            # tenth
            student_config.plateau = dict(factor=0.5, patience=1, rtol=0.1)
    if arg.letters:
        c.evaluation.max_completion_length = LETTERS
        for student_config in c.students.values():
            student_config.sequence_length = LETTERS
    return c


def made_teacher(num_requests=1000):
    """Return the config of a teacher that is trained from scratch.

    It is pre-trained on the teaching corpus, then fine-tuned on worked puzzles and good answers to
    requests.
    """
    base = dict(
        corpus="bilingual_teaching",
        num_documents=20_000,
        sequence_length=LENGTH,
        batch_size=32,
        num_steps=700,
    )
    base["optimizer"] = dict(
        learning_rate=3e-3, schedule="cosine", warmup_steps=30, weight_decay=0.05
    )
    fine_tune = dict(
        batch_size=16,
        sequence_length=LENGTH,
        num_steps=100,
        log_every=5,
        data=dict(num_puzzles=2000, num_requests=num_requests),
        eval_every=50,
        optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=5),
    )
    model = models.deepseek_v3_tiny(vocab_size=VOCAB_SIZE)
    return dict(model=model, base=base, fine_tune=fine_tune)


def start(model, *, letters=False, num_steps=600):
    """Return the config of a student's start.

    It is pre-trained for a short time on the world's corpus, which contains mistakes.
    """
    base = dict(
        corpus="bilingual",
        num_documents=20_000,
        sequence_length=LETTERS if letters else LENGTH,
        batch_size=32,
        num_steps=num_steps,
        # The architectures of Qwen and Llama have no router with a bias, which the default would
        # move
        bias_update_speed=0.0,
    )
    base["optimizer"] = dict(
        learning_rate=3e-3, schedule="cosine", warmup_steps=30, weight_decay=0.05
    )
    return dict(model=model, base=base, tokenizer="letters" if letters else "bilingual")


def student(start, *, num_steps=400, **loss):
    """Return the config of a student that trains from this start on num_steps batches."""
    config = dict(start=start, batch_size=16, sequence_length=LENGTH, num_steps=num_steps)
    config.update(eval_every=50, save_every=100, log_every=10)
    config["loss"] = dict(temperature=2.0, relation_heads=4) | loss
    config["optimizer"] = dict(
        learning_rate=3e-3, schedule="cosine", warmup_steps=10, weight_decay=0.05
    )
    return config
