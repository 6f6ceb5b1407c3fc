"""Makes a folder that is there as a whole or not at all."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

UNFINISHED = ".unfinished"
"""Ends the name of a folder that is being written, or that was left by a process that was killed."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_new(folder: Path) -> None:
    """Check that a folder can be made.

    Raises:
        ValueError: there is something of that name, or the folder around it is missing.
    """
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder} exists already; choose another name or remove it.")
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"{folder.absolute().parent} is not a folder; create it first.")
    part = _part(folder)
    if part.exists():
        raise ValueError(
            f"{part} exists; it is left from a conversion that was killed and must be removed, "
            "unless one is running now."
        )


def check_space(folder: Path, needed: int) -> None:
    """Check that there is room for the files of a folder.

    Raises:
        ValueError: the file system has less free space.
    """
    free = shutil.disk_usage(folder.absolute().parent).free
    if free < needed:
        raise ValueError(f"{folder} needs {show_size(needed)}, but only {show_size(free)} are free there.")


def show_size(num_bytes: int) -> str:
    return tqdm.format_sizeof(num_bytes, "B")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` that gets its name at the end, or is removed if anything goes wrong.

    Raises:
        ValueError: the disk is full.
    """
    part = _part(folder)
    part.mkdir()
    try:
        yield part
        part.rename(folder)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise ValueError(
                f"The disk became full while {folder} was written; what was there of it has been removed."
            ) from error
        raise


def _part(folder: Path) -> Path:
    return folder.absolute().with_name(folder.absolute().name + UNFINISHED)
