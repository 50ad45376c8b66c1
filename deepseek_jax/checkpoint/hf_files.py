"""The tensors of a Hugging Face folder, read one at a time; every fault names the tensor and the file."""

from pathlib import Path

import ml_dtypes
import numpy as np
from huggingface_hub import get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
# Follows the name of an FP8 tensor to name its scale, by which, despite "inv", the tensor is multiplied
SCALE = "_scale_inv"


class HFFiles:
    """The safetensors of a folder. Files stay on disk; `read` loads one tensor.

    `names` leaves out the scales of FP8 tensors: `read` returns them with their tensors, from any file.
    Raises ValueError for a folder without safetensors, for a file that is missing or cut short, for a dtype
    that is not in DTYPES and for an FP8 tensor without its scale.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            found = get_local_safetensors_metadata(self.folder)
        except (NotASafetensorsRepoError, SafetensorsParsingError, FileNotFoundError) as error:
            raise ValueError(
                f"{folder} holds no readable safetensors checkpoint: {error}"
            ) from error
        self._info, self._file = {}, {}
        for file, metadata in found.files_metadata.items():
            self._check_length(file, metadata.tensors)
            for name, info in metadata.tensors.items():
                if info.dtype not in DTYPES:
                    raise ValueError(
                        f"{name} in {self.folder / file} is {info.dtype}, not one of {[*DTYPES]}"
                    )
                self._info[name], self._file[name] = info, file
        for name, file in found.weight_map.items():
            if self._file.get(name) != file:
                raise ValueError(
                    f"{name} is missing from {self.folder / file}, where the index puts it"
                )
        # FP8 is the only dtype of one byte in DTYPES
        fp8 = {name for name in self._info if self.dtype(name).itemsize == 1}
        self.names = [
            name for name in self._info if not (name.endswith(SCALE) and name[: -len(SCALE)] in fp8)
        ]
        for name in fp8:
            self._check_scale(name)

    def __contains__(self, name: str):
        return name in self._info

    def where(self, name: str):
        """The path of the file that holds a tensor."""
        return self.folder / self._file[name]

    def dtype(self, name: str):
        """A tensor's dtype as stored."""
        return DTYPES[self._info[name].dtype]

    def shape(self, name: str):
        """A tensor's shape."""
        return tuple(self._info[name].shape)

    def read(self, name: str):
        """-> (the tensor as stored, its scale float32[ceil(rows / 128), ceil(columns / 128)] or None)."""
        is_fp8 = self.dtype(name).itemsize == 1
        return self._read(name), self._read(name + SCALE) if is_fp8 else None

    def _read(self, name):
        start, stop = self._info[name].data_offsets
        with open(self.where(name), "rb") as file:
            file.seek(_data_start(file) + start)
            raw = np.fromfile(file, np.uint8, stop - start)
        return raw.view(self.dtype(name)).reshape(self.shape(name))

    def _check_length(self, file, infos):
        path = self.folder / file
        with open(path, "rb") as opened:
            available = path.stat().st_size - _data_start(opened)
        for name, info in sorted(infos.items(), key=lambda item: item[1].data_offsets):
            if info.data_offsets[1] > available:
                missing = info.data_offsets[1] - available
                raise ValueError(f"{name} is truncated: {path} ends {missing} bytes before it does")

    def _check_scale(self, name):
        if name + SCALE not in self._info:
            raise ValueError(
                f"{name + SCALE} is missing: {name} in {self.where(name)} is FP8 and needs it"
            )
        expected = tuple(-(-size // 128) for size in self.shape(name))
        if self.shape(name + SCALE) != expected:
            raise ValueError(
                f"{name + SCALE} in {self.where(name + SCALE)} has shape {self.shape(name + SCALE)}; "
                f"128 x 128 blocks of {self.shape(name)} need {expected}"
            )


def _data_start(file):
    """Where a safetensors file's data begin: after 8 bytes with the header's length, and the header."""
    return 8 + int.from_bytes(file.read(8), "little")
