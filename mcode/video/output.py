"""Files that get their name when they are whole, and what stands in their place: devices, pipes, standard output."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mcode.errors import InputError
from mcode.video.paths import StrPath, check_output, output_error
from mcode.whole import give_name, partial_name


class OutputFile:
    """A file that gets its name only when it is whole: written beside it as NAME.partial-PID.EXT, renamed by commit().

    A device or pipe that exists (/dev/null) is written directly; but with a remedy what cannot be seeked in is refused. Raises
    InputError where the file exists (without force), cannot be written, or the disk is full; after that discard() leaves
    nothing behind. Unbuffered, so that what was written survives a kill. Offers write, seek, tell, seekable and closed, which
    is what PyAV needs.
    """

    def __init__(self, path: StrPath, *, force: bool = False, remedy: str | None = None) -> None:
        self.path = Path(path)
        final = Path(os.path.realpath(path))
        check_output(path, force)
        refused = InputError(f"{self.path} is a pipe, and this cannot be written to one: {remedy}")
        if remedy is not None and self.path.is_fifo():  # opening it would wait for its reader
            raise refused
        self._final = final if final.is_file() or not final.exists() else None
        self._force = force
        suffix = final.suffix if len(final.suffix) < 20 else ""
        self._temporary = final.with_name(partial_name(final.stem, suffix)) if self._final else final
        try:
            self._raw = open(self._temporary, "w+b" if self._final else "wb", buffering=0)  # noqa: SIM115 - until commit()
        except OSError as error:
            raise output_error(self.path, error) from error
        if remedy is not None and not self._raw.seekable():
            self.discard()
            raise refused

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            raise output_error(self.path, error) from error
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def seekable(self) -> bool:
        return self._raw.seekable()

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def commit(self) -> None:
        """Give the file its name. Nothing may be written after."""
        try:
            self._raw.close()
            if self._final:
                move_into_place(self._temporary, self._final, self._force)
        except OSError as error:
            self.discard()
            raise output_error(self.path, error) from error

    def discard(self) -> None:
        """Remove what was written. Does nothing after commit()."""
        self._raw.close()
        if self._final:
            self._temporary.unlink(missing_ok=True)


class StandardOutput:
    """Standard output in the place of an OutputFile."""

    def write(self, data: bytes) -> None:
        try:
            sys.stdout.buffer.write(data)
        except BrokenPipeError:  # its reader has had enough
            raise
        except OSError as error:
            raise output_error("standard output", error) from error

    def commit(self) -> None:
        try:
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise output_error("standard output", error) from error

    def discard(self) -> None:
        pass


def move_into_place(temporary: Path, final: Path, force: bool) -> None:
    """Renames `temporary`, or copies it into a device or pipe. Without force FileExistsError where a file has appeared there
    meanwhile, on file systems that have hard links."""
    if final.exists() and not final.is_file():  # a device or pipe
        with open(final, "wb") as file:
            file.write(temporary.read_bytes())
        temporary.unlink()
        return
    give_name(temporary, final, replace=force)
