"""R1-Distill-Qwen-7B: Qwen2.5-Math-7B on R1's text, as published.

python launch/train.py --config=configs/distill_qwen_7b.py
python launch/plan.py --config=configs/distill_qwen_7b.py --topology=v5e:8x8

The numbers are from arXiv:2501.12948, appendix B.4.3. The start declares 4096 positions, and the
published student 131,072. This run trains on 131,072.
"""

from configs import models
from configs.distill_published import published


def get_config(arg=None):
    mesh = dict(fsdp=16, context=4)
    return published(
        arg,
        "Qwen2.5-Math-7B",
        models.r1_distill_qwen_7b(),
        learning_rate=8e-5,
        mesh=mesh,
        micro_batches=4,
        positions=131_072,
    )
