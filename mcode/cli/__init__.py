"""The command line: options in, one call into the library, a table or one JSON object out. No codec logic.

The library is imported inside the command that uses it, so that `mcode --help` loads neither torch nor PyAV.
Exit status: 0 done; 1 an unexpected failure, or a check that did not hold; 2 something the user can mend; 130 Ctrl-C.
"""

from __future__ import annotations

import _thread
import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from mcode.cli.apps import app
from mcode.cli.output import one_line
from mcode.errors import McodeError, OutOfMemory
from mcode.memory import keep_freed_memory, ran_out

UsageError = typer.BadParameter.__base__
"""Typer's parent of every usage error; it has lived in click and in typer, and both call it this way."""
MENDABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.EFBIG,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
}
"""Errors of the operating system which the user can mend (a full disk, no permission): status 2, not 1."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from mcode import __version__

        print(f"mcode {__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# In the order of the help.
for _commands in ("coding", "batch", "training", "measuring", "paper", "images", "ablation", "bench", "study", "live"):
    importlib.import_module(f"mcode.cli.{_commands}")


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """SIGTERM unwinds, so that temporary files are removed; so does a terminal that is closed (SIGHUP, which may come twice),
    where that is not ignored. A signal that arrives inside a finaliser or a library's callback ends only that, as Python
    reports to sys.unraisablehook; it is then sent once more."""
    came = 0
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows

    def terminate(signum: int, frame: Any) -> None:
        nonlocal came
        if signum == came == hangup:
            return
        came = signum
        sys.exit(128 + signum)

    def once_more(lost: sys.UnraisableHookArgs) -> None:
        nonlocal came
        if not issubclass(lost.exc_type, SystemExit):
            hook(lost)
            return
        number, came = came or signal.SIGTERM, 0
        again = threading.Timer(0.02, _thread.interrupt_main, (number,))  # not here, where it would be lost again
        again.daemon = True
        again.start()

    numbers = [signal.SIGTERM]
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # as nohup has it
        numbers.append(hangup)
    previous, hook = {number: signal.signal(number, terminate) for number in numbers}, sys.unraisablehook
    sys.unraisablehook = once_more
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (sys.argv's when None) and return the exit status. A fault in mcode itself is raised."""
    keep_freed_memory()
    if sys.stderr is None:  # closed: nothing that belongs there is to end on standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that its encoding lacks
    try:
        with _signals_unwind():
            status = app(args=arguments, prog_name="mcode", standalone_mode=False) or 0
    except UsageError as error:  # type: ignore[misc]
        return _usage(error)
    except McodeError as error:
        return _fail(one_line(str(error)), 2)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:
        # the reader of our pipe has left; the flush at exit must not raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", 2 if error.errno in MENDABLE else 1)
    except OutOfMemory as error:
        return _fail(one_line(str(error)), 1)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        return _fail("out of memory: try a smaller --size", 1)
    return _fail("interrupted", 130) if status == 130 else status


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help page
        print(error.format_message(), file=sys.stderr)
        return 2
    path = error.ctx.command_path if error.ctx else "mcode"
    return _fail(f"{error.format_message()}\nTry '{path} --help'.", 2)


def _fail(message: str, status: int) -> int:
    print(f"mcode: {'' if status == 130 else 'error: '}{message}", file=sys.stderr)
    return status
