"""Tensors of a Hugging Face folder, whole or in rows; every error names the tensor and the file.

Tests: tests/checkpoint/test_hf_import.py, tests/checkpoint/test_share.py.
"""

import math
from pathlib import Path

import ml_dtypes
import numpy as np
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE

from deepseek_jax.files import parse_json, staged

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
# The name of an FP8 tensor's scale ends in this. Despite "inv", the tensor is multiplied by it
SCALE = "_scale_inv"


class HFFiles:
    """The safetensors files of a folder, from which single tensors or rows are read.

    The files stay on disk, and a folder of a bucket is copied to local disk first. `read` loads one
    tensor, and `read_rows` a part of one.

    Attributes:
        names: Names of the tensors, except the scales of FP8 tensors: `read` and `read_rows` return
            these together with their tensors, from whichever file has them.

    Raises:
        ValueError: The folder has no safetensors, a file is missing or cut short, a dtype is not in
            DTYPES, or an FP8 tensor has no scale.
    """

    # The number of threads that may read at once
    READS = 16

    def __init__(self, folder: str | Path):
        # Imported here: the import takes a fifth of a second, and toy worlds have no such folder
        from huggingface_hub import errors, get_local_safetensors_metadata

        read_errors = errors.NotASafetensorsRepoError, errors.SafetensorsParsingError
        self.folder = staged(folder)
        self._check_index()
        try:
            folder_metadata = get_local_safetensors_metadata(self.folder)
        # AttributeError: the header is JSON, but no object
        except (*read_errors, FileNotFoundError, AttributeError) as error:
            raise ValueError(
                f"{folder} holds no readable safetensors checkpoint: {error}; take another copy of it"
            ) from error
        self._info, self._file = {}, {}
        # The offset of each file's data
        self._start: dict[str, int] = {}
        for file, metadata in folder_metadata.files_metadata.items():
            self._check_length(file, metadata.tensors)
            for name, info in metadata.tensors.items():
                if info.dtype not in DTYPES:
                    raise ValueError(
                        f"{name} in {self.folder / file} is {info.dtype}, not one of {[*DTYPES]}"
                    )
                self._info[name], self._file[name] = info, file
        for name, file in folder_metadata.weight_map.items():
            if self._file.get(name) != file:
                raise ValueError(
                    f"{name} is missing from {self.folder / file}, where the index puts it"
                )
        fp8_names = {name for name in self._info if self._is_fp8(name)}
        self.names = [
            name
            for name in self._info
            if not (name.endswith(SCALE) and name[: -len(SCALE)] in fp8_names)
        ]
        for name in fp8_names:
            self._check_scale(name)

    def __contains__(self, name: str):
        return name in self._info

    def where(self, name: str):
        """Return the path of the file that has a tensor."""
        return self.folder / self._file[name]

    def dtype(self, name: str):
        """Return a tensor's dtype as stored."""
        return DTYPES[self._info[name].dtype]

    def shape(self, name: str):
        """Return a tensor's shape."""
        return tuple(self._info[name].shape)

    def read(self, name: str):
        """Read a whole tensor.

        Returns:
            (tensor, scale). The tensor is as stored. The scale is float32[ceil(rows / 128),
            ceil(columns / 128)] for an FP8 tensor, and None for others.
        """
        all_rows = np.arange(self.shape(name)[0])
        if not self._is_fp8(name):
            return self._read(name, all_rows), None
        return self._read(name, all_rows), self._read(
            name + SCALE, np.arange(-(-len(all_rows) // 128))
        )

    def read_rows(self, name: str, rows):
        """Read some rows of a tensor.

        Nothing else of the file is read, except the scales of all blocks in which a row lies.

        Args:
            rows: int[rows], each at most once, in any order.

        Returns:
            (rows, scale). The rows are as stored. The scale is float32[rows, ceil(columns / 128)]
            for an FP8 tensor, and None for others.
        """
        if not self._is_fp8(name):
            return self._read(name, rows), None
        blocks, block_of_row = np.unique(rows // 128, return_inverse=True)
        return self._read(name, rows), self._read(name + SCALE, blocks)[block_of_row]

    def _is_fp8(self, name):
        # FP8 is the only dtype of one byte in DTYPES
        return self.dtype(name).itemsize == 1

    def _read(self, name, rows):
        dtype, row_shape = self.dtype(name), self.shape(name)[1:]
        row_bytes = dtype.itemsize * math.prod(row_shape)
        start = self._start[self._file[name]] + self._info[name].data_offsets[0]
        order = np.argsort(rows)
        is_sorted = np.all(order[:-1] < order[1:])
        raw_rows = np.empty((len(rows), row_bytes), np.uint8)
        # Unbuffered: a buffer would read past the rows
        with open(self.where(name), "rb", buffering=0) as file:
            for first, last in _runs(rows[order]):
                self._read_into(file, start + rows[order[first]] * row_bytes, raw_rows[first:last])
        # Rotary pairs are requested out of order
        raw_rows = raw_rows if is_sorted else raw_rows[np.argsort(order)]
        return raw_rows.view(dtype).reshape(len(rows), *row_shape)

    def _read_into(self, file, offset, raw_rows):
        """Fill raw_rows, a contiguous uint8 array, from the bytes of an open file at an offset."""
        file.seek(offset)
        unread_bytes = memoryview(raw_rows).cast("B")
        # One read may return fewer bytes than requested, and at most 2 GiB
        while unread_bytes:
            count = file.readinto(unread_bytes)
            if not count:
                raise ValueError(
                    f"{file.name} is truncated: it ends {len(unread_bytes)} bytes too early; take another "
                    "copy of it"
                )
            unread_bytes = unread_bytes[count:]

    def _check_index(self):
        """Raise ValueError if the index is damaged or names a file outside of the folder.

        An index from a stranger must not make us open such files.
        """
        path = self.folder / SAFETENSORS_INDEX_FILE
        if not path.exists():
            return
        try:
            files = set(parse_json(path.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged: it has no weight_map ({error!r}); take another copy of it"
            ) from error
        for file in files:
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(
                    f"{path} names {file!r}, which is not a file of its folder; take another copy of it"
                )

    def _check_length(self, file, infos):
        path = self.folder / file
        with open(path, "rb") as stream:
            # 8 bytes hold the length of the header that follows them
            self._start[file] = 8 + int.from_bytes(stream.read(8), "little")
        available_bytes = path.stat().st_size - self._start[file]
        for name, info in sorted(infos.items(), key=lambda item: item[1].data_offsets):
            if info.data_offsets[1] > available_bytes:
                missing_bytes = info.data_offsets[1] - available_bytes
                raise ValueError(
                    f"{name} is truncated: {path} ends {missing_bytes} bytes before it does; take another "
                    "copy of it"
                )
        end_offset = max((info.data_offsets[1] for info in infos.values()), default=0)
        if available_bytes > end_offset:
            raise ValueError(
                f"{path} has {available_bytes - end_offset} bytes that belong to none of its tensors; take "
                "another copy of it"
            )

    def _check_scale(self, name):
        if name + SCALE not in self._info:
            raise ValueError(
                f"{name + SCALE} is missing: {name} in {self.where(name)} is FP8 and needs it"
            )
        expected_shape = tuple(-(-size // 128) for size in self.shape(name))
        if self.shape(name + SCALE) != expected_shape:
            raise ValueError(
                f"{name + SCALE} in {self.where(name + SCALE)} has shape {self.shape(name + SCALE)}; "
                f"128 x 128 blocks of {self.shape(name)} need {expected_shape}"
            )


def _runs(rows):
    """Return (first, last) of each run of consecutive numbers, rows[first:last], in sorted rows."""
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    # Not strict: without rows there are no starts
    return zip(starts, [*starts[1:], len(rows)], strict=False)
