#!/usr/bin/env python3
"""A backend that was hijacked: it is started by a holder, says Hello as it should, and then does
what its first argument says. `kernel_security.rs` looks at what the holder makes of it."""
import os, random, socket, struct, sys, time

holder = socket.socket(fileno=int(os.environ["NBD_HOLDER_FD"]))
size, block, flags = map(int, os.environ["NBD_EXPORT"].split(":"))
noise = random.Random(7)


def frame(payload, descriptors=(), claimed=None):
    count = len(descriptors) if claimed is None else claimed
    data = struct.pack("<II", len(payload), count) + payload
    socket.send_fds(holder, [data], descriptors)


def string(text):
    return struct.pack("<Q", len(text)) + text


def hello():
    holder.sendall(b"nbd-hold" + struct.pack("<I", 1))
    frame(struct.pack("<II", 0, 2) + string(b"hostile") + struct.pack("<QIH?", size, block, flags, False))


def grant():
    """The ledger and the lanes."""
    holder.recv(12, socket.MSG_WAITALL)
    head, descriptors, _, _ = socket.recv_fds(holder, 8, 32, socket.MSG_WAITALL)
    holder.recv(struct.unpack("<II", head)[0], socket.MSG_WAITALL)
    return descriptors


def keep_on(say):
    """Says it until nobody listens any more, and reads nothing."""
    try:
        while True:
            say()
    except OSError:
        pass


READY = struct.pack("<II", 2, 0)
POISONED = struct.pack("<IIHQII", 4, 9, 99, 1 << 63, 0xFFFFFFFF, 3)
mode = sys.argv[1]
if mode == "garbage":
    keep_on(lambda: holder.sendall(noise.randbytes(4096)))
elif mode == "huge":
    hello()
    holder.sendall(struct.pack("<II", 0xFFFFFFFF, 0) + bytes(1 << 16))
elif mode == "descriptors":
    hello()
    keep_on(lambda: frame(struct.pack("<I", 1) + string(b"x"), [0] * 32, claimed=0))
elif mode == "claims":
    hello()
    frame(struct.pack("<I", 1) + string(b"x"), claimed=32)
elif mode == "keeps":
    hello()
    grant()
    keep_on(lambda: frame(struct.pack("<I", 1) + string(b"k%d" % noise.randrange(99)), [0]))
elif mode == "words":
    hello()
    grant()
    keep_on(lambda: frame(noise.choice([READY, POISONED, struct.pack("<I", 3) + string(b"\x1b[2J") + b"\0"])))
elif mode == "scribbles":
    hello()
    ledger, *_ = grant()
    frame(READY)
    while True:
        # Header, control page, slots and records of the first lane, over and over.
        os.pwrite(ledger, noise.randbytes(64), noise.randrange(4 << 10, 300 << 10) & ~7)
elif mode == "answers":
    hello()
    _, lane, *_ = grant()
    frame(READY)
    lane = socket.socket(fileno=lane)
    try:
        lane.sendall(noise.randbytes(1 << 16))
    except OSError:
        pass
elif mode == "shuts":
    hello()
    _, lane, *_ = grant()
    frame(READY)
    socket.socket(fileno=lane).shutdown(socket.SHUT_RDWR)
elif mode == "deaf":
    hello()
    grant()
    frame(READY)
else:
    sys.exit(f"{mode}: no such mode")
time.sleep(1000)
