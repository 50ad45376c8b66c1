"""R1-Distill-Llama-8B: Llama-3.1-8B on R1's text, as published (arXiv:2501.12948, appendix B.4.3).

python launch/train.py --config=configs/distill_llama_8b.py
python launch/plan.py --config=configs/distill_llama_8b.py --topology=v5p:4x4x4
"""

from configs import models
from configs.distill_published import published


def get_config(arg=None):
    mesh = dict(fsdp=64)
    return published(
        arg, "Llama-3.1-8B", models.r1_distill_llama_8b(), learning_rate=5e-5, mesh=mesh
    )
