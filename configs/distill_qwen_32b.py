"""R1-Distill-Qwen-32B: Qwen2.5-32B on R1's text, as published (arXiv:2501.12948, appendix B.4.3).

python launch/train.py --config=configs/distill_qwen_32b.py
python launch/plan.py --config=configs/distill_qwen_32b.py --topology=v5p:4x4x8
"""

from configs import models
from configs.distill_published import published


def get_config(arg=None):
    mesh = dict(fsdp=64, tensor=2)
    return published(
        arg, "Qwen2.5-32B", models.r1_distill_qwen_32b(), learning_rate=6e-5, mesh=mesh
    )
