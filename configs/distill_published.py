"""Shared by the published students: fine-tuning on the teacher's text (arXiv:2501.12948).

This is sequence-level distillation, without logits and without reinforcement (section 2.4 and
appendix B.4.3).

Published: about 804,745 texts; two to three epochs (here two); rows of 32,768 tokens, one text
each, 64 a step; a learning rate that decays by a cosine to a tenth. Not published: warm-up, weight
decay, Adam's numbers and packing. Here there is no warm-up and no weight decay, Adam's numbers are
ours, and a step is 64 texts because nothing is packed.

launch/generate.py writes the texts from R1, here as two tasks. The students start from Hugging Face
folders. Their tokenizer_config.json must have the chat template for the student.
"""

import math

from ml_collections import ConfigDict

from configs.common import parse_arg

NUM_TEXTS, EPOCHS, BATCH_SIZE, LENGTH = 804_745, 2, 64, 32_768
TEXTS = "/data/r1_distill"


def published(arg, init_from, model, *, learning_rate, mesh, micro_batches=1, positions=None):
    """Return the config of one student.

    Args:
        arg: The config argument.
        init_from: The name of the student's start.
        model: The architecture of the start.
        learning_rate: The rate at the start of the decay.
        mesh: The mesh with which the plan in the config's docstring fits. A larger slice has more
            data parallelism.
        micro_batches: The micro-batches with which that plan fits.
        positions: The context length to train for, if the start declares fewer positions.
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
    # One reader for each host of four chips
    c.readers = math.prod(mesh.values()) // 4
    return c
