"""Files that are written whole or not at all, even when the program is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def part_file(path: Path) -> Iterator[Path]:
    """Give a file to write, and rename it to `path` when the block ends without an error.

    At any moment `path` is absent, its old content, or its whole new content. An error in the block removes the file.

    Args:
        path: the file to be; its folder is made if absent.

    Yields:
        Path of a hidden file in the same folder, `.<name>.<process id>.part`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "r+b") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all.

    Args:
        path: the file; its folder is made if absent.
        content: all of it.
    """
    with part_file(path) as part:
        part.write_bytes(content)
