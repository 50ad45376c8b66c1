"""R1-Distill-Qwen-14B: Qwen2.5-14B on R1's text, as published (arXiv:2501.12948, appendix B.4.3).

python launch/train.py --config=configs/distill_qwen_14b.py
python launch/plan.py --config=configs/distill_qwen_14b.py --topology=v5p:4x4x4
"""

from configs import models
from configs.distill_published import published


def get_config(arg=None):
    mesh = dict(fsdp=64)
    return published(
        arg, "Qwen2.5-14B", models.r1_distill_qwen_14b(), learning_rate=7e-5, mesh=mesh
    )
