"""Accelerators by name: memory, bandwidths and speed."""

import dataclasses
from collections.abc import Collection
from typing import Protocol

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
        device_kind: JAX's name for one device.
        hbm_bytes: Bytes of memory that a program may use.
        hbm_bytes_per_second: Bytes read from memory a second.
        flops_per_second: Dense bfloat16 operations a second.
        link: Bytes a second of one link of the torus, one way; or of all links of a chip, if a
            switch joins them.
        network: Bytes a second that a chip has beyond these links.
        peaks: {dtype of the operands, as XLA writes it: operations a second}, for dtypes that the
            chip multiplies faster than bfloat16.
        devices: How many JAX devices the chip is.
        options: The compiler's options for a train step.
        tried_on_decoding: Options that were tried on decoding and are not set there.
        seconds_per_operation: What each operation of a program takes in addition to its work; an
            assumption, until a chip was measured.
        seconds_per_collective: What each collective takes that no other work hides; an assumption,
            until a chip was measured.
        seconds_per_row: What a gather or a scatter takes to issue a row; an assumption for all but
            tpu7x, on whose SparseCore a row of 640 bytes took 0.63 ns with eight streams and 1.14
            with one (github.com/vllm-project/tpu-inference, pull request 3609).
    """

    device_kind: str
    hbm_bytes: int
    hbm_bytes_per_second: float
    flops_per_second: float
    link: float
    network: float = 6.25e9
    peaks: dict[str, float] = dataclasses.field(default_factory=dict)
    devices: int = 1
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    tried_on_decoding: tuple[str, ...] = ()
    seconds_per_operation: float = 0.9e-6
    seconds_per_collective: float = 7e-6
    seconds_per_row: float = 1.14e-9

    def device(self) -> "Chip":
        """Return one JAX device's share of the chip."""
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


# Options that run collectives on the sparse cores, at the same time as other work. They come from MaxText's
# recipe for DeepSeek-V3 on v5p (github.com/AI-Hypercomputer/tpu-recipes): the ones that change what overlaps
# in our step, with libtpu 0.0.42. launch/pods.md says what each chip's compiler does with them, under "The
# compiler's options". They change nothing on v5e, which has no sparse cores, and on tpu7x, which uses its
# sparse cores without them
_REDUCES = ("all_gather", "reduce_scatter", "all_reduce")
ON_SPARSE_CORES = {
    **{f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true" for kind in _REDUCES},
    **{f"xla_tpu_enable_{kind}_offload_tracing": "true" for kind in _REDUCES},
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_enable_instruction_fusion": "false",
    "xla_sc_disable_megacore_partitioning": "true",
}
# Options that were tried on decoding, in three layers of DeepSeek-V3 on v5p. With both, 18 of a token's 28
# collectives are asynchronous, but none that exchanges tokens with experts. The options are not set: each
# collective of a token needs the one before, few operations can run at the same time as one, and nobody has
# measured the latency of the sparse cores
TRIED_ON_DECODING = ("ON_SPARSE_CORES", "xla_tpu_enable_async_all_to_all=true")
# Google Cloud's page on each version: docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x. Links: the chapter
# "TPUs" of jax-ml.github.io/scaling-book, and a sixth of tpu7x's 1,200 GB/s both ways. A v5e has 16 GiB, and
# the compiler takes a quarter of a GiB. network: 50 Gbit/s a chip, the page's number for v5p
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


class Device(Protocol):
    """A JAX device, as far as its kind tells the Chip: this file imports no jax."""

    @property
    def device_kind(self) -> str:
        """JAX's name for the kind."""


def chip_of(devices: Collection[Device]) -> Chip | None:
    """Return the Chip of these JAX devices, as one device; None for a kind without numbers."""
    kind = next(iter(devices)).device_kind
    # "NVIDIA H100 80GB HBM3" is an H100
    gpus = (chip for chip in GPUS.values() if kind.startswith(chip.device_kind))
    return DEVICES.get(kind) or next(gpus, None)


def peak_of(devices: Collection[Device]) -> float | None:
    """Return the bfloat16 operations a second of all devices; None for a kind without numbers."""
    chip = chip_of(devices)
    return None if chip is None else len(devices) * chip.flops_per_second
