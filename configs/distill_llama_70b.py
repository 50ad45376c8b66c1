"""R1-Distill-Llama-70B: Llama-3.3-70B-Instruct on R1's text, as published (arXiv:2501.12948, appendix B.4.3).

python launch/train.py --config=configs/distill_llama_70b.py
python launch/plan.py --config=configs/distill_llama_70b.py --topology=v5p:4x8x8
"""

from configs import models
from configs.distill_published import published


def get_config(arg=None):
    mesh = dict(fsdp=64, tensor=4)
    return published(
        arg, "Llama-3.3-70B-Instruct", models.r1_distill_llama_70b(), learning_rate=2e-5, mesh=mesh
    )
