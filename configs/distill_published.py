"""Shared by the published students (arXiv:2501.12948, section 2.4 and appendix B.4.3): fine-tuning on the
teacher's text alone (sequence-level distillation), without logits and without reinforcement.

About 804,745 texts; two epochs (published: two to three); rows of 32,768 tokens, one text each, 64 a step;
the learning rate decays by a cosine to a tenth. Warm-up, weight decay, Adam's numbers and packing are not
published. There is no warm-up and no weight decay here, Adam's numbers are ours, and without packing a step
is 64 texts.

launch/generate.py writes the texts from R1, here as two tasks. The students start from Hugging Face folders,
whose tokenizer_config.json must have the chat template for the student.
"""

import math

from ml_collections import ConfigDict

from configs.common import parse_arg

NUM_TEXTS, EPOCHS, BATCH_SIZE, LENGTH = 804_745, 2, 64, 32_768
TEXTS = "/data/r1_distill"


def published(arg, init_from, model, *, learning_rate, mesh, micro_batches=1, positions=None):
    """The config of one student. model: the architecture of its start. mesh, micro_batches: those with which
    the plan in its docstring fits; a larger slice has more data parallelism. positions: context length to
    train for, if its start declares fewer.
    """
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(dict(recipe="distill", seed=arg.seed, template="chat", packing=False))
    c.tasks = {
        task: dict(path=f"{TEXTS}/{task}/teacher_conversations/1.0.0", num_held_out=256)
        for task in ("reasoning", "general")
    }
    start = dict(init_from=f"/checkpoints/{init_from}", model=model)
    if positions is not None:
        start["max_position_embeddings"] = positions
    c.starts = dict(start=start)
    student = dict(start="start", batch_size=BATCH_SIZE, sequence_length=LENGTH)
    student["micro_batches"] = micro_batches
    student["num_steps"] = -(-EPOCHS * NUM_TEXTS // BATCH_SIZE)
    student["loss"] = dict(weights=dict(hard=1.0))
    student["optimizer"] = dict(learning_rate=learning_rate, schedule="cosine", final_fraction=0.1)
    student.update(eval_every=500, save_every=500, log_every=10)
    c.students = dict(student=student)
    c.mesh = mesh
    # One for each host of four chips
    c.readers = math.prod(mesh.values()) // 4
    return c
