"""Published times of a training step, and how our program of the same step is laid out on the same chips."""

import dataclasses

# What lies between the roofline and a clock, as far as the programs are the same
LEFT_OUT = (
    "the compiler's schedule: how much of the collectives is hidden lies between the two times",
    "products whose tiles do not fill the matrix unit",
    "latencies: of kernels, of loops and of each collective",
    "links that two collectives want at once",
)
# In what the programs differ
DIFFERENT = (
    "MaxText keeps layers' inputs, on v5p attention's outputs too, in the host's memory",
    "our buffer for routed tokens is a quarter larger than the balanced share: gathers read empty rows too",
    "MaxText splits weights over all chips alone, not experts",
)


@dataclasses.dataclass(frozen=True)
class Published:
    """A published step of DeepSeek-V3's pre-training in bfloat16, on synthetic data, without MTP.

    topology: of launch/plan.py. rows of length tokens each are a batch. seconds: of a step. source: of these
    numbers. mesh, micro_batch_size, remat: ours, fields of configs/pretrain_v3.py.
    """

    name: str
    topology: str
    rows: int
    length: int
    seconds: float
    source: str
    mesh: dict
    micro_batch_size: int
    remat: str

    @property
    def tokens(self):
        """Of a step."""
        return self.rows * self.length

    def factor(self, predicted: float):
        """How many times longer than a predicted number of seconds the published step takes."""
        return self.seconds / predicted

    def fields(self):
        """{dotted field of configs/pretrain_v3.py: its value}."""
        stage = dict(
            sequence_length=self.length,
            batch_size=self.rows,
            micro_batch_size=self.micro_batch_size,
            mtp_weight=0.0,
        )
        return {
            "mesh": self.mesh,
            "model.num_nextn_predict_layers": 0,
            "model.remat": self.remat,
            **{f"stages.stage_1.{name}": value for name, value in stage.items()},
        }


# MaxText's recipes in the repository AI-Hypercomputer/tpu-recipes
PUBLISHED = (
    Published(
        "512 v5p chips",
        "v5p:8x8x8",
        rows=512 * 6,
        length=8192,
        seconds=90.668,
        source="training/v5p/DeepSeek3-671B-MaxText: 25,165,824 tokens a step, float32 weights",
        mesh=dict(data=1, fsdp=16, expert=32),
        micro_batch_size=512,
        remat="attention",
    ),
    Published(
        "128 tpu7x chips",
        "tpu7x:4x4x8",
        rows=256 * 8,
        length=4096,
        seconds=27.02,
        source="training/ironwood/deepseek3-671b/4k-bf16-tpu7x-4x4x8: random routing",
        mesh=dict(data=1, fsdp=8, expert=32),
        micro_batch_size=256,
        # A core has half of a chip's memory
        remat="full",
    ),
)
