"""Files that are written whole or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path


def write_whole(path, contents: bytes) -> None:
    """The file with these contents. Raises as ``whole_file`` does."""
    with whole_file(path) as file:
        file.write(contents)


@contextmanager
def whole_file(path):
    """An open file beside the target, flushed to disk and renamed at the end: a reader sees the old file or the new one,
    never a part.

    Raises:
        OSError: the folder is missing, unwritable or full; nothing is left behind.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
