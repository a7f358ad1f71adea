"""Serve a Linux NBD block device from Python.

Derive from Backend, and run the script by ``python3 -m nbdbackend script.py``, or call serve(). The
program may crash, be killed, stop in pdb or be replaced: the device only waits, and a successor executes
again what was not answered. So a request may be executed twice, and what was answered must not live in
this process only.
"""

import ctypes
import errno
import logging
import os
import threading
from typing import Any, List, Optional, Union

from . import library as _c

__all__ = ["Backend", "Device", "serve"]

Bytes = Union[bytes, bytearray, memoryview]
_log = logging.getLogger("nbdbackend")
_LEVELS = {3: logging.ERROR, 4: logging.WARNING, 6: logging.INFO, 7: logging.DEBUG}
_library: Optional[ctypes.CDLL] = None


class Backend:
    """A block device. Methods that a subclass does not define are not offered to the kernel.

    They are called from threads of the library, by default one at a time. OSError becomes its errno;
    any other exception is logged and becomes EIO.
    """

    #: Size in bytes, a positive multiple of block_size. Must not change.
    size: int = 0
    #: 512, 1024, 2048 or 4096.
    block_size: int = 512
    #: How many requests may be executed at once.
    max_threads: int = 1
    #: For operators, by convention a word and a colon first.
    description: str = ""

    def read(self, offset: int, length: int) -> Bytes:
        """Returns exactly `length` bytes from `offset`."""
        raise NotImplementedError

    def write(self, offset: int, data: memoryview, fua: bool) -> None:
        """Stores `data`, which is valid until this returns; durably, if `fua`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Makes all writes that have returned durable."""
        raise NotImplementedError

    def trim(self, offset: int, length: int) -> None:
        """The content of a range is not needed any more."""
        raise NotImplementedError

    def zero(self, offset: int, length: int) -> None:
        """Makes a range read as zeroes."""
        raise NotImplementedError

    def granted(self, device: "Device") -> None:
        """The device belongs to this process, which serves it when this returns: acquire here what
        only one process can have, look for stored descriptors, store some."""

    def close(self) -> None:
        """The device was detached, and the last request is answered."""


class Device:
    """A device while it is being granted."""

    def __init__(self, number: int) -> None:
        self._number = number

    @property
    def name(self) -> str:
        """Like nbd0."""
        buffer = ctypes.create_string_buffer(33)
        _check(_load().nbdb_name(self._number, buffer, len(buffer)))
        return buffer.value.decode()

    @property
    def stored(self) -> List[str]:
        """The names of stored descriptors."""
        names: List[str] = []
        buffer = ctypes.create_string_buffer(33)
        while _load().nbdb_stored_name(self._number, len(names), buffer, len(buffer)) == 0:
            names.append(buffer.value.decode())
        return names

    def take(self, name: str) -> int:
        """A duplicate of a stored descriptor, which the caller must close."""
        return _check(_load().nbdb_stored(self._number, name.encode()))

    def keep(self, name: str, fd: int) -> None:
        """Stores a descriptor, so that it outlives this process: before the device exists only."""
        _check(_load().nbdb_keep(self._number, name.encode(), fd))


def serve(
    backend: Backend,
    device: Optional[str] = None,
    replay: Optional[str] = None,
    takeover: bool = False,
) -> None:
    """Serves until the device is detached. Without `device` ("nbd0") and `replay` (a recording of nbd-ctl
    record) the environment tells which, as it does for a program that a holder started.

    Raises OSError with the library's message if the device cannot be served, TypeError if the backend has
    no method `read`.
    """
    if getattr(backend.read, "__func__", None) is Backend.read:
        raise TypeError(f"the class {type(backend).__name__} has no method read(self, offset, length)")
    c = _load()
    options = _c.OpenOptions(device=_bytes(device), replay=_bytes(replay))
    number = _check(c.nbdb_open(ctypes.byref(options)))
    calls = _Calls(backend)
    geometry = _c.Geometry(size=backend.size, block_size=backend.block_size, flags=calls.flags)
    serve_options = _c.ServeOptions(
        description=(backend.description or f"python:{type(backend).__name__}").encode(),
        flags=_c.TAKEOVER if takeover else 0,
        max_threads=backend.max_threads,
    )
    try:
        _check(
            c.nbdb_start(
                number,
                ctypes.byref(geometry),
                ctypes.byref(calls.table),
                ctypes.byref(serve_options),
            )
        )
        _wait(number)
    finally:
        # Refused while it is served, which an interrupt leads to: then the process ends with it.
        c.nbdb_close(number)


def _wait(number: int) -> None:
    """Waits in a thread of its own: a signal would not interrupt the library."""
    failures: List[OSError] = []

    def wait() -> None:
        try:
            _check(_load().nbdb_wait(number))
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=wait, name="nbdbackend", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _load() -> ctypes.CDLL:
    global _library
    if _library is None:
        _library = _c.load()
        # Not told again: the program has decided already where messages go.
        _library.nbdb_log_to(_log_function, None)
    return _library


@_c.LOG
def _log_function(_context: Any, level: int, message: bytes) -> None:
    _log.log(_LEVELS.get(level, logging.INFO), "%s", message.decode(errors="replace"))


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, _load().nbdb_error().decode(errors="replace"))
    return result


def _bytes(text: Optional[str]) -> Optional[bytes]:
    return None if text is None else os.fsencode(text)


class _Calls:
    """The functions that the library calls. Kept as long as it may."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        offered = {
            name: getattr(type(backend), name) is not getattr(Backend, name)
            for name in ("write", "flush", "trim", "zero")
        }
        self.flags = (
            (0 if offered["write"] else _c.READ_ONLY)
            | (_c.FLUSH | _c.FUA if offered["flush"] else 0)  # writes get `fua`
            | (_c.TRIM if offered["trim"] else 0)
            | (_c.ZERO if offered["zero"] else 0)
        )
        members = {
            "read": _c.READ(self._read),
            "write": _c.WRITE(self._write),
            "flush": _c.FLUSH_FUNCTION(self._flush),
            "trim": _c.RANGE(self._trim),
            "zero": _c.RANGE(self._zero),
            "granted": _c.GRANTED(self._granted),
            "close": _c.CLOSE(self._close),
        }
        self.table = _c.Callbacks(**members)

    def _call(self, function: Any) -> int:
        """Calls the program. An exception must not reach ctypes, which would answer 0 for it."""
        try:
            function()
            return 0
        except OSError as error:
            _log.warning("%s", error)
            return error.errno or errno.EIO
        except BaseException:
            _log.exception("the backend failed")
            return errno.EIO

    def _read(self, _context: Any, buffer: int, length: int, offset: int) -> int:
        def read() -> None:
            data = self._backend.read(offset, length)
            if len(data) != length:
                raise OSError(errno.EIO, f"read returned {len(data)} bytes and not {length}")
            (ctypes.c_char * length).from_address(buffer)[:] = bytes(data)

        return self._call(read)

    def _write(self, _context: Any, data: int, length: int, offset: int, flags: int) -> int:
        def write() -> None:
            view = memoryview((ctypes.c_char * length).from_address(data)).cast("B").toreadonly()
            fua = bool(flags & _c.CMD_FLAG_FUA)
            self._backend.write(offset, view, fua)
            # A view that the backend has kept would read memory of another request.
            view.release()

        return self._call(write)

    def _flush(self, _context: Any) -> int:
        return self._call(self._backend.flush)

    def _trim(self, _context: Any, offset: int, length: int, flags: int) -> int:
        return self._call(lambda: self._durably(self._backend.trim, offset, length, flags))

    def _zero(self, _context: Any, offset: int, length: int, flags: int) -> int:
        return self._call(lambda: self._durably(self._backend.zero, offset, length, flags))

    def _durably(self, function: Any, offset: int, length: int, flags: int) -> None:
        function(offset, length)
        if flags & _c.CMD_FLAG_FUA:
            self._backend.flush()

    def _granted(self, _context: Any, number: int) -> int:
        return self._call(lambda: self._backend.granted(Device(number)))

    def _close(self, _context: Any) -> None:
        self._call(self._backend.close)
