"""Documents on disk, read back through memory maps.

`split`.text holds a split's texts one after another, in UTF-8, and `split`.ends.npy the end of each: no character
separates documents.
"""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import atomic_write
from transloom.pipeline.progress import Progress, no_progress


def write_documents(
    folder: Path, split: str, documents: Iterable[str], progress: Progress = no_progress
) -> dict[str, int]:
    """Writes a split's two files, one document in memory at a time.

    Returns:
        "documents", their number, and "bytes" of all documents in UTF-8.
    """
    ends = array("q")
    size = 0
    with atomic_write(folder / f"{split}.text") as file:
        for text in documents:
            data = text.encode()
            file.write(data)
            size += len(data)
            ends.append(size)
            if len(ends) % 10_000 == 0:
                progress(f"clean {split}", len(ends), 0)
    with atomic_write(folder / f"{split}.ends.npy") as file:
        values = np.frombuffer(ends, np.int64) if ends else np.empty(0, np.int64)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        file.write(values.tobytes())
    progress(f"clean {split}", len(ends), len(ends))
    return {"documents": len(ends), "bytes": size}


class Documents:
    """The documents of one split.

    Attributes:
        num_bytes: (documents,) int64, of each document in UTF-8.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self._text = text
        self._ends = ends
        self.num_bytes = np.diff(ends, prepend=0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        return self.data(index).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def data(self, index: int) -> bytes:
        """The document in UTF-8."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        end = int(self._ends[index])
        return self._text[end - int(self.num_bytes[index]) : end].tobytes()


def open_documents(folder: Path, split: str) -> Documents:
    """Opens the files of `write_documents`.

    Raises:
        UserError: the files are missing or damaged.
    """
    text_file, ends_file = folder / f"{split}.text", folder / f"{split}.ends.npy"
    try:
        size = text_file.stat().st_size
        ends = np.load(ends_file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no documents of {split} ({error.filename}): run the prepare job first") from None
    except ValueError as error:
        raise UserError(f"{ends_file} is damaged: {error}. Remove {folder} and run the prepare job") from None
    is_right = ends.dtype == np.int64 and ends.ndim == 1
    if not is_right or (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if len(ends) else 0) != size:
        raise UserError(f"{ends_file} does not belong to {text_file}. Remove {folder} and run the prepare job")
    # A file of no bytes can't be mapped.
    return Documents(np.memmap(text_file, np.uint8, "r") if size else np.empty(0, np.uint8), ends)
