# Commands for gdb, which a program has put behind the layout of the ledger and the name of the
# device. They look at memory that the backend shares with its holder, and change nothing.

import os
import struct
import time

import gdb


class Ledger:
    """The ledger of the program that is being debugged."""

    def __init__(self):
        pid = gdb.selected_inferior().pid
        if pid == 0:
            raise gdb.GdbError("nbd: no program is being debugged: attach PID, or run")
        self.file = open(ledger_of(pid), "rb", buffering=0)
        if (self.word(0), self.half(HEADER_VERSION)) != (MAGIC, VERSION):
            raise gdb.GdbError("nbd: not a ledger of this version: nbd-ctl debug of its own release")
        self.lanes = min(self.half(HEADER_LANES), 16)
        self.ring = self.word(HEADER_RING)
        self.transmit = self.word(HEADER_TRANSMIT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, offset, length):
        data = os.pread(self.file.fileno(), length, offset)
        if len(data) != length:
            raise gdb.GdbError("nbd: the ledger is shorter than it says")
        return data

    def word(self, offset):
        return struct.unpack("=Q", self.read(offset, 8))[0]

    def half(self, offset):
        return struct.unpack("=I", self.read(offset, 4))[0]

    def lane(self, index):
        return PAGE + index * (LANE_RING + self.ring + self.transmit)

    def delivered(self, lane):
        """The number of the last transmission that the kernel has entirely."""
        record = lane + TRANSMIT + (self.word(lane + TRANSMIT_EPOCH) & 1) * TRANSMIT_SIZE
        sent = self.word(record + TRANSMIT_SENT) + self.half(record + TRANSMIT_COUNT)
        sequence = self.word(record + TRANSMIT_SEQUENCE)
        return sequence if sent >= self.word(record + TRANSMIT_LENGTH) else sequence - 1

    def requests(self):
        """The requests that were received and not answered, oldest first."""
        found = []
        for index in range(self.lanes):
            lane = self.lane(index)
            parsed, delivered = self.word(lane + PARSED), self.delivered(lane)
            slots = self.read(lane + LANE_SLOTS, SLOTS * SLOT_SIZE)
            for start in range(0, len(slots), SLOT_SIZE):
                request = Request(index, slots[start : start + SLOT_SIZE])
                pending = request.state == 1 and request.position < parsed
                if pending or request.state > max(1, delivered):
                    found.append(request)
        return sorted(found, key=lambda request: (request.received_at, request.position))

    def payload(self, request, limit):
        """The first bytes of a write's data, which stays in the ring until it is answered."""
        limit = max(0, min(limit, request.length, self.ring))
        lane = self.lane(request.lane)
        record = lane + RECEIVE + (self.word(lane + RECEIVE_EPOCH) & 1) * RECEIVE_SIZE
        start = request.position + REQUEST_LENGTH - self.word(record + RECEIVE_BASE)
        first = min(limit, self.ring - start % self.ring)
        ring = lane + LANE_RING
        return self.read(ring + start % self.ring, first) + self.read(ring, limit - first)


def ledger_of(pid):
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            if os.path.islink(path) and os.readlink(path).startswith("/memfd:nbd-ledger"):
                return path
    except OSError as error:
        raise gdb.GdbError(f"nbd: cannot look for the ledger: {error}")
    raise gdb.GdbError(f"nbd: process {pid} has no ledger: it is no backend, or has not joined yet")


class Request:
    def __init__(self, lane, slot):
        def word(offset):
            return struct.unpack_from("=Q", slot, offset)[0]

        def half(offset):
            return struct.unpack_from("=I", slot, offset)[0]

        self.lane = lane
        self.state, self.cookie = word(0), word(8)
        self.offset, self.length = word(SLOT_OFFSET), half(SLOT_LENGTH)
        kind = half(SLOT_LENGTH + 4)
        self.type, self.flags = kind & 0xFFFF, kind >> 16
        self.position = word(SLOT_POSITION)
        self.received_at, self.started_at = word(SLOT_RECEIVED_AT), word(SLOT_STARTED_AT)
        self.attempts, self.crashes = half(SLOT_ATTEMPTS), half(SLOT_ATTEMPTS + 4)

    def stage(self):
        if self.state != 1:
            return "answering"
        return "executing" if self.started_at else "queued"

    def name(self):
        return COMMANDS.get(self.type, f"command {self.type}")


def ago(nanoseconds):
    return f"{max(0, time.monotonic_ns() - nanoseconds) / 1e9:.1f} s"


def nth(number):
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def dump(data):
    for start in range(0, len(data), 16):
        line = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        print(f"  {start:04x}  {line.hex(' '):<47}  {text}")


class Prefix(gdb.Command):
    """What an NBD device waits for."""

    def __init__(self):
        super().__init__("nbd", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)


class Requests(gdb.Command):
    """List what this program was asked and has not answered, oldest first."""

    def __init__(self):
        super().__init__("nbd requests", gdb.COMMAND_DATA, gdb.COMPLETE_NONE)

    def invoke(self, argument, from_tty):
        with Ledger() as ledger:
            requests = ledger.requests()
        if not requests:
            print("no request is waiting for this program")
            return
        print("   N  AGE         COMMAND       OFFSET+LENGTH           STAGE      LANE  COOKIE")
        for number, request in enumerate(requests):
            place = f"{request.offset}+{request.length}"
            print(
                f"{number:4}  {ago(request.received_at):<10}  {request.name():<12}  {place:<22}"
                f"  {request.stage():<9}  {request.lane:>4}  {request.cookie:016x}"
            )


class OneRequest(gdb.Command):
    """Print one request: nbd request N [BYTES].
N is its number in `nbd requests`, or its cookie. Of the data of a write the first BYTES are
printed, 64 if nothing is said."""

    def __init__(self):
        super().__init__("nbd request", gdb.COMMAND_DATA, gdb.COMPLETE_NONE)

    def invoke(self, argument, from_tty):
        words = gdb.string_to_argv(argument)
        if len(words) not in (1, 2) or not words[-1].isalnum():
            raise gdb.GdbError("usage: nbd request N [BYTES]")
        try:
            limit = int(words[1], 0) if len(words) == 2 else 64
        except ValueError:
            raise gdb.GdbError(f"nbd: {words[1]}: not a number of bytes")
        with Ledger() as ledger:
            request = choose(ledger.requests(), words[0])
            data = ledger.payload(request, limit) if request.type == WRITE else b""
        print(f"{request.name()} {request.offset}+{request.length}, flags {request.flags:#x}")
        print(f"cookie {request.cookie:016x}, lane {request.lane}")
        print(f"received {ago(request.received_at)} ago")
        if request.started_at:
            print(f"execution begun {ago(request.started_at)} ago, for the {nth(request.attempts)} time")
        if request.crashes:
            print(f"has crashed {request.crashes} backends")
        if data:
            print(f"the first {len(data)} of its {request.length} bytes:")
            dump(data)


def choose(requests, word):
    if len(word) < 16 and word.isdigit() and int(word) < len(requests):
        return requests[int(word)]
    for request in requests:
        if f"{request.cookie:016x}" == word:
            return request
    raise gdb.GdbError(f"nbd: {word}: no such request: see nbd requests")


def remind(event):
    """Says how many requests wait when the program stops at a breakpoint or for a signal."""
    if not isinstance(event, (gdb.BreakpointEvent, gdb.SignalEvent)):
        return
    try:
        with Ledger() as ledger:
            count = len(ledger.requests())
    except (gdb.GdbError, OSError):
        return
    if count:
        print(f"nbd: {count} of {DEVICE}'s requests wait for this program: nbd requests")


Prefix()
Requests()
OneRequest()
gdb.events.stop.connect(remind)

# A panic of a Rust program is stopped where it happens: before it aborts, the stack is unwound.
try:
    gdb.decode_line("rust_panic")
    gdb.Breakpoint("rust_panic")
except gdb.error:
    pass

# What others send to a backend is passed on and does not stop it; its own faults do.
gdb.execute("handle SIGPIPE SIGHUP SIGTERM SIGUSR1 SIGUSR2 nostop print pass", False, True)
print(f"nbd: {DEVICE} waits while this program is stopped, and nothing of it is lost.")
print("nbd: continue lets it go on, detach or quit leaves it alone; kill makes a successor take over.")
print("nbd: see help nbd.")
