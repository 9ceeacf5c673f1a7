"""Files that are either whole or absent after any crash, in one folder that nothing can lead out of.

A file is written under a temporary name in the same folder, flushed to the disk, renamed, and the folder is flushed as
well: only then is it there. Names are opened relative to the folder's descriptor and never through symbolic links, so
that neither a link planted beforehand nor one swapped in later leads a write elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

TEMPORARY: Final = ".tmp-"
"""How the names of unfinished files begin."""

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Folder:
    """An open folder; a context manager that closes it.

    Args:
        path: Where it is; made if it is absent.
        parent: Its parent, for a folder within one of ours, where a symbolic link is refused.
    """

    def __init__(self, path: Path, parent: Folder | None = None) -> None:
        self.path = path
        if parent is None:
            path.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(path, _DIRECTORY)
        else:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path.name, dir_fd=parent.descriptor)
                os.fsync(parent.descriptor)
            self.descriptor = os.open(path.name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent.descriptor)

    def names(self) -> set[str]:
        """The names in the folder, those of unfinished files too."""
        # By descriptor, which a path could not follow if the folder were moved.
        return set(os.listdir(self.descriptor))  # noqa: PTH208

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: if there is none.
        """
        with self.open(name) as file:
            content: bytes = file.read()
            return content

    def open(self, name: str) -> IO[bytes]:
        """Opens a file for reading."""
        return os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.descriptor), "rb")

    def write(self, name: str, content: bytes, unique: str = "") -> None:
        """Writes a whole file in place of one of that name; `unique` keeps runners in one folder apart."""
        with self.writing(name, unique) as file:
            file.write(content)

    def write_new(self, name: str, content: bytes, unique: str = "") -> None:
        """Writes a whole file unless there is one of that name, which stays."""
        with contextlib.suppress(FileExistsError), self.writing(name, unique, replace=False) as file:
            file.write(content)

    @contextlib.contextmanager
    def writing(self, name: str, unique: str = "", *, replace: bool = True) -> Iterator[IO[bytes]]:
        """A file that gets its name, whole, when the block ends well, and is removed when it does not.

        Args:
            name: Its name.
            unique: What keeps the unfinished files of several runners in one folder apart.
            replace: Whether it takes the place of a file of that name; else that one stays, and is a FileExistsError.
        """
        temporary = f"{TEMPORARY}{name}{unique}"
        self.remove(temporary)
        file: IO[Any] = os.fdopen(os.open(temporary, _NEW, 0o644, dir_fd=self.descriptor), "wb")
        try:
            with file:
                yield file
                file.flush()
                # What fails here may have been lost, and asking again would not say so: the file is given up.
                os.fsync(file.fileno())
            if replace:
                os.rename(temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
            else:
                os.link(temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
                os.unlink(temporary, dir_fd=self.descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self.descriptor)
            raise
        # The new name is in the folder, which has to reach the disk as well.
        os.fsync(self.descriptor)

    def append_line(self, name: str, line: str) -> None:
        """Adds a line to a log."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o644, dir_fd=self.descriptor), "ab") as file:
            file.write(line.encode() + b"\n")

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def close(self) -> None:
        """Closes the folder."""
        os.close(self.descriptor)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
