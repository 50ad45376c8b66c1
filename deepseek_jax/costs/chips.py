"""Accelerators by name: memory, bandwidths and speed."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip: bytes of memory that a program may use, bytes read a second, dense operations a second.

    peaks: {dtype of the operands, as XLA writes it: operations a second} where the chip multiplies that dtype
    faster than bfloat16. link: bytes a second of one link of the torus, one way, or all links of a chip where
    a switch joins them; network: bytes a second that a chip has beyond them. devices: how many JAX devices
    the chip is; device_kind is the name of one. options: of the compiler, for a train step;
    tried_on_decoding: those that decoding does without.

    Assumptions, until a chip was measured: seconds_per_operation, which each operation of a program takes
    beyond its work; seconds_per_collective, which each collective does that nothing hides.
    """

    device_kind: str
    hbm_bytes: int
    hbm_bytes_per_second: float
    flops_per_second: float
    link: float
    network: float = 6.25e9
    peaks: dict = dataclasses.field(default_factory=dict)
    devices: int = 1
    options: dict = dataclasses.field(default_factory=dict)
    tried_on_decoding: tuple = ()
    seconds_per_operation: float = 0.9e-6
    seconds_per_collective: float = 7e-6

    def device(self):
        """The share of one JAX device, as a Chip."""
        n = self.devices
        return dataclasses.replace(
            self,
            hbm_bytes=self.hbm_bytes // n,
            hbm_bytes_per_second=self.hbm_bytes_per_second / n,
            flops_per_second=self.flops_per_second / n,
            link=self.link / n,
            network=self.network / n,
            peaks={dtype: peak / n for dtype, peak in self.peaks.items()},
            devices=1,
        )


# Collectives beside other work, on the sparse cores: of the options of MaxText's recipe for DeepSeek-V3 on
# v5p (github.com/AI-Hypercomputer/tpu-recipes), those that change what overlaps in our step, with libtpu
# 0.0.42. launch/README.md has what the compiler of each chip makes of them, under "The compiler's options".
# They change nothing on v5e, which has no sparse cores, and on tpu7x, which uses its own without them
_REDUCES = ("all_gather", "reduce_scatter", "all_reduce")
ON_SPARSE_CORES = {
    **{f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true" for kind in _REDUCES},
    **{f"xla_tpu_enable_{kind}_offload_tracing": "true" for kind in _REDUCES},
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_enable_instruction_fusion": "false",
    "xla_sc_disable_megacore_partitioning": "true",
}
# Options that were tried on decoding. With both, 18 of the 28 collectives of a token are asynchronous in
# three layers of DeepSeek-V3 on v5p, but none of the exchange of its tokens. They are not set: a token's
# collectives follow from each other, few operations run beside one, and nobody has measured the sparse cores'
# own latency
TRIED_ON_DECODING = ("ON_SPARSE_CORES", "xla_tpu_enable_async_all_to_all=true")
# Google Cloud's page on each version: docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x. Links: the chapter
# "TPUs" of jax-ml.github.io/scaling-book, and a sixth of tpu7x's 1,200 GB/s both ways. A v5e has 16 GiB, of
# which the compiler takes a quarter. network: 50 Gbit/s a chip, the page's number for v5p
CHIPS = {
    "v5e": Chip("TPU v5 lite", int(15.75 * GIB), 819e9, 197e12, 45e9, peaks={"s8": 394e12}),
    "v5p": Chip(
        "TPU v5",
        95 * GIB,
        2765e9,
        459e12,
        90e9,
        peaks={"s8": 918e12},
        options=ON_SPARSE_CORES,
        tried_on_decoding=TRIED_ON_DECODING,
    ),
    "v6e": Chip(
        "TPU v6 lite",
        32 * GIB,
        1638e9,
        918e12,
        90e9,
        peaks={"s8": 1836e12},
        options=ON_SPARSE_CORES,
    ),
    "tpu7x": Chip(
        "TPU7x", 192 * GIB, 7380e9, 2307e12, 100e9, peaks={"f8e4m3fn": 4614e12}, devices=2
    ),
}
# NVIDIA's data sheets, without sparsity. NVLink: 900 GB/s both ways. A chip has 400 Gbit/s of InfiniBand
GPUS = {
    "h100": Chip("NVIDIA H100", 80 * 10**9, 3350e9, 989.4e12, 450e9, 50e9, {"f8e4m3fn": 1978.9e12}),
    "h200": Chip(
        "NVIDIA H200", 141 * 10**9, 4800e9, 989.4e12, 450e9, 50e9, {"f8e4m3fn": 1978.9e12}
    ),
}
DEVICES = {chip.device_kind: chip.device() for chip in CHIPS.values()}


def chip_of(devices):
    """The Chip of one of these JAX devices; None for kinds without numbers."""
    kind = devices[0].device_kind
    # "NVIDIA H100 80GB HBM3" is an H100
    gpus = (chip for chip in GPUS.values() if kind.startswith(chip.device_kind))
    return DEVICES.get(kind) or next(gpus, None)


def peak_of(devices):
    """The bfloat16 operations a second of all these JAX devices together; None for kinds without numbers."""
    chip = chip_of(devices)
    return chip and len(devices) * chip.flops_per_second
