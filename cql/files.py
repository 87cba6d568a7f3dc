"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(path, contents: bytes) -> None:
    """Writes beside the target, flushes to disk and renames: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the folder is missing, unwritable or full; nothing is left behind.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
