"""Tensors of a Hugging Face folder, whole or in rows; every error names the tensor and the file.

Tests: tests/checkpoint/test_hf_import.py, tests/checkpoint/test_share.py.
"""

import math
from collections.abc import Mapping
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
# Rows and columns of an FP8 tensor that share a scale
FP8_TILE = (128, 128)


class HFFiles:
    """The safetensors files of a folder, from which single tensors or rows are read.

    The files stay on disk, and a folder of a bucket is copied to local disk first. `read` loads one
    tensor, and `read_rows` a part of one. A subclass may read other quantised tensors: `tile` says
    which tensors have a scale, and `scale_name` says its name.

    Attributes:
        names: Names of the tensors, except the scales of quantised tensors: `read` and `read_rows`
            return these together with their tensors, from whichever file has them.

    Raises:
        ValueError: The folder has no safetensors, a file is missing or cut short, a dtype is not in
            DTYPES, or an FP8 tensor has no scale.
    """

    # The number of threads that may read at once
    READS = 16
    # Safetensors' name of a dtype -> the dtype
    DTYPES: Mapping[str, np.dtype] = DTYPES

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
                if info.dtype not in self.DTYPES:
                    raise ValueError(
                        f"{name} in {self.folder / file} is {info.dtype}, not one of {[*self.DTYPES]}"
                    )
                self._info[name], self._file[name] = info, file
        for name, file in folder_metadata.weight_map.items():
            if self._file.get(name) != file:
                raise ValueError(
                    f"{name} is missing from {self.folder / file}, where the index puts it"
                )
        tiles = {name: self.tile(name) for name in self._info}
        scale_names = {self.scale_name(name) for name, tile in tiles.items() if tile}
        self.names = [name for name in self._info if name not in scale_names]
        for name, tile in tiles.items():
            if tile:
                self._check_scale(name, tile)

    def __contains__(self, name: str):
        return name in self._info

    def where(self, name: str):
        """Return the path of the file that has a tensor."""
        return self.folder / self._file[name]

    def dtype(self, name: str):
        """Return a tensor's dtype as stored."""
        return self.DTYPES[self._info[name].dtype]

    def shape(self, name: str):
        """Return a tensor's shape."""
        return self.stored_shape(name)

    def stored_shape(self, name: str):
        """Return the shape of the array that `read` returns."""
        return tuple(self._info[name].shape)

    def scale_name(self, name: str):
        """Return the name of a quantised tensor's scale."""
        return name + SCALE

    def tile(self, name: str) -> tuple[int, int] | None:
        """Return the rows and columns of a tensor that share a scale; None if it is not quantised."""
        return FP8_TILE if self.dtype(name) == DTYPES["F8_E4M3"] else None

    def read(self, name: str):
        """Read a whole tensor.

        Returns:
            (tensor, scale), both as stored. The scale has one number for each tile; it is None if the
            tensor is not quantised.
        """
        tensor = self._read(name, np.arange(self.shape(name)[0]))
        if self.tile(name) is None:
            return tensor, None
        scale = self.scale_name(name)
        return tensor, self._read(scale, np.arange(self.shape(scale)[0]))

    def read_rows(self, name: str, rows):
        """Read some rows of a tensor.

        Nothing else of the file is read, except the scales of all blocks in which a row lies.

        Args:
            rows: int[rows], each at most once, in any order.

        Returns:
            (rows, scale). The rows are as stored. The scale is float32[rows, tiles of a row] for a
            quantised tensor, and None for others.
        """
        tile = self.tile(name)
        if tile is None:
            return self._read(name, rows), None
        blocks, block_of_row = np.unique(rows // tile[0], return_inverse=True)
        return self._read(name, rows), self._read(self.scale_name(name), blocks)[block_of_row]

    def _read(self, name, rows):
        dtype, row_shape = self.dtype(name), self.stored_shape(name)[1:]
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

    def _check_scale(self, name, tile):
        scale = self.scale_name(name)
        kind = "FP8" if tile == FP8_TILE else "FP4"
        if scale not in self._info:
            raise ValueError(
                f"{scale} is missing: {name} in {self.where(name)} is {kind} and needs it"
            )
        # Not strict: a tensor that is no matrix is refused later, by its shape
        expected_shape = tuple(
            -(-size // part) for size, part in zip(self.shape(name), tile, strict=False)
        )
        if self.shape(scale) != expected_shape:
            raise ValueError(
                f"{scale} in {self.where(scale)} has shape {self.shape(scale)}; "
                f"{tile[0]} x {tile[1]} blocks of {self.shape(name)} need {expected_shape}"
            )


def _runs(rows):
    """Return (first, last) of each run of consecutive numbers, rows[first:last], in sorted rows."""
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    # Not strict: without rows there are no starts
    return zip(starts, [*starts[1:], len(rows)], strict=False)
