"""TPU chips by name: memory, bandwidth and speed."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip: bytes of memory, bytes read a second, dense bfloat16 operations a second.

    devices: how many JAX devices the chip is; device_kind is the name of one.
    """

    device_kind: str
    hbm_bytes: int
    hbm_bytes_per_second: float
    flops_per_second: float
    devices: int = 1

    def device(self):
        """The share of one JAX device, as a Chip."""
        return dataclasses.replace(
            self,
            hbm_bytes=self.hbm_bytes // self.devices,
            hbm_bytes_per_second=self.hbm_bytes_per_second / self.devices,
            flops_per_second=self.flops_per_second / self.devices,
            devices=1,
        )


# From Google Cloud's page on each version: docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x
CHIPS = {
    "v5e": Chip("TPU v5 lite", 16 * GIB, 819e9, 197e12),
    "v5p": Chip("TPU v5", 95 * GIB, 2765e9, 459e12),
    "v6e": Chip("TPU v6 lite", 32 * GIB, 1638e9, 918e12),
    "tpu7x": Chip("TPU7x", 192 * GIB, 7380e9, 2307e12, devices=2),
}
DEVICES = {chip.device_kind: chip.device() for chip in CHIPS.values()}
