"""libnbdbackend as ctypes declares it: structures, constants, functions."""

import ctypes
import os
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_size_t, c_uint, c_uint32
from ctypes import c_uint64, c_void_p

READ_ONLY, FLUSH, FUA, TRIM, ZERO, CACHE = 1, 2, 4, 8, 16, 32
TAKEOVER = 1
CMD_FLAG_FUA, CMD_FLAG_NO_HOLE = 1, 2

READ = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, c_uint64)
WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, c_uint64, c_uint32)
FLUSH_FUNCTION = CFUNCTYPE(c_int, c_void_p)
RANGE = CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64, c_uint32)
CACHE_FUNCTION = CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64)
GRANTED = CFUNCTYPE(c_int, c_void_p, c_int)
CLOSE = CFUNCTYPE(None, c_void_p)
LOG = CFUNCTYPE(None, c_void_p, c_int, c_char_p)


class _Sized(Structure):
    """A structure that begins with its size."""

    def __init__(self, **members):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **members)


class OpenOptions(_Sized):
    _fields_ = [("struct_size", c_size_t), ("device", c_char_p), ("replay", c_char_p)]


class Geometry(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("size", c_uint64),
        ("block_size", c_uint32),
        ("flags", c_uint32),
    ]


class ServeOptions(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("description", c_char_p),
        ("context", c_void_p),
        ("flags", c_uint32),
        ("max_threads", c_uint32),
    ]


class Callbacks(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("read", READ),
        ("write", WRITE),
        ("flush", FLUSH_FUNCTION),
        ("trim", RANGE),
        ("zero", RANGE),
        ("cache", CACHE_FUNCTION),
        ("granted", GRANTED),
        ("close", CLOSE),
    ]


def load() -> ctypes.CDLL:
    """The library: that which NBDBACKEND_LIBRARY names, or the installed one."""
    library = ctypes.CDLL(os.environ.get("NBDBACKEND_LIBRARY", "libnbdbackend.so.0"))
    library.nbdb_error.restype = c_char_p
    library.nbdb_open.argtypes = [POINTER(OpenOptions)]
    library.nbdb_attached.argtypes = [c_int, POINTER(Geometry)]
    library.nbdb_stored.argtypes = [c_int, c_char_p]
    library.nbdb_stored_name.argtypes = [c_int, c_uint, c_char_p, c_size_t]
    library.nbdb_keep.argtypes = [c_int, c_char_p, c_int]
    library.nbdb_name.argtypes = [c_int, c_char_p, c_size_t]
    library.nbdb_start.argtypes = [
        c_int,
        POINTER(Geometry),
        POINTER(Callbacks),
        POINTER(ServeOptions),
    ]
    for function in (library.nbdb_wait, library.nbdb_close, library.nbdb_examine):
        function.argtypes = [c_int]
    library.nbdb_log_to.argtypes = [LOG, c_void_p]
    return library
