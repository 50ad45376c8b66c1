"""R1-Distill-Qwen-1.5B: Qwen2.5-Math-1.5B on R1's text, as published.

python launch/train.py --config=configs/distill_qwen_1_5b.py
python launch/plan.py --config=configs/distill_qwen_1_5b.py --topology=v5e:4x4

The numbers are from arXiv:2501.12948, appendix B.4.3. The start declares 4096 positions, and the
published student 131,072. This run trains on 131,072.
"""

from configs import models
from configs.distill_published import published


def get_config(arg=None):
    mesh = dict(fsdp=8, context=2)
    return published(
        arg,
        "Qwen2.5-Math-1.5B",
        models.qwen2_5_math_1_5b(),
        learning_rate=1e-4,
        mesh=mesh,
        micro_batches=8,
        positions=131_072,
    )
