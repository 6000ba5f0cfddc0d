# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""One process at a time writes into a folder."""

import contextlib
import os
from collections.abc import Iterator


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def hold_folder(folder: str | os.PathLike, activity: str) -> Iterator[None]:
    """
    Keeps other processes that ask for the same from a folder, until the block ends or this process does, in whatever
    way. Nothing is written. Where the system or its files know no such locks, nobody is kept away.

    Args:
        folder (`str` or `os.PathLike`): The folder; it exists.
        activity (`str`): What the process does, for the message.

    Raises:
        ValueError: if another process holds the folder.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Data loaders' workers share the descriptor, and may live on: to close it here would not release it.
                stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
            except BlockingIOError:
                raise ValueError(
                    f"Another process is {activity} into {str(folder)!r}. Wait for it, choose another `output_dir`, "
                    "or end it: workers outlive a launcher that was killed (`pgrep -af python` lists them)."
                ) from None
            except OSError:  # network file systems without locks: a courtesy, not a condition
                pass
        yield


__all__ = ["hold_folder"]
