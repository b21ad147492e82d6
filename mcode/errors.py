"""Errors by who is at fault: the caller or their files (McodeError), or the wire (WireError). No messages are printed here."""


class McodeError(Exception):
    """Something the user can mend. Its text is one line that names the value and the remedy; the command exits with 2."""


class InputError(McodeError):
    """A file, option or argument that cannot be used."""


class ArgumentError(InputError, ValueError):
    """A number or word that is outside its range: a command's user can mend it, and so can a program."""


class OutOfMemory(MemoryError):
    """Its text is one line that names what to make smaller; the command exits with 1."""


class FormatError(McodeError):
    """A .mcode file or manifold that is damaged beyond use, of a newer format, or no such file at all."""


class ManifoldError(McodeError):
    """A manifold that is missing, of another hash than the stream names, or unfit for the request."""


class ConfigError(McodeError):
    """A configuration file with an unknown key, a missing key or a bad value."""


class WireError(Exception):
    """Bytes from outside that do not parse. Raised by `parse` only; receive loops catch it, count it and go on."""
