#!/usr/bin/env python3
"""A whole backend in pure Python: serves a file, with one thread, requests in order.

    nbd-ctl attach -- python3 examples/python/backend.py disk.img     started by a holder
    NBD_JOIN=nbd0 python3 examples/python/backend.py disk.img         joins an attached device

Kill it whenever you like: the next one, this program or nbd-serve, goes on where it was. A request
on which it crashes again and again gets EIO, and the others are answered.
docs/reference/backend-protocol.md explains why; to commit means here to do the one store that counts.
"""
import ctypes, errno, fcntl, mmap, os, platform, select, socket, struct, sys, time

PAGE, SLOTS, RECORDS = 4096, 256, 4096
RECEIVE_MOST, SEND_MOST = 512 << 10, 256 << 10
REQUEST, REPLY = struct.Struct(">IHHQQI"), struct.Struct(">IIQ")
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZEROES = range(7)
FUA, NO_HOLE = 1, 2
# Flush, FUA, trim, write zeroes, several lanes, cache: what nbd-serve offers for a file. Only a
# backend with the same flags can take over from another one.
FLAGS = 1 | 4 | 8 | 32 | 64 | 256 | 1024
ON_WIRE = {errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC}
BLANK = memoryview(bytes(1 << 20))

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype, libc.syscall.argtypes = ctypes.c_long, [ctypes.c_long] * 6
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
# The system calls themselves: a C library may make sendmmsg() out of sendmsg(), and then it is
# this process that stores the count, and can be killed just before it does.
RECVMMSG, SENDMMSG = {"x86_64": (299, 307), "aarch64": (243, 269)}[platform.machine()]


class Damaged(Exception):
    """The ledger contradicts itself; no successor could do better."""


class Holder:
    """The conversation with the holder, which lasts as long as this process."""

    def __init__(self):
        if fd := os.environ.pop("NBD_HOLDER_FD", None):
            self.socket = socket.socket(fileno=int(fd))
            self.socket.set_inheritable(False)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            directory = os.environ.get("NBD_RUNTIME_DIR", "/run/nbd")
            self.socket.connect(f"{directory}/{os.environ['NBD_JOIN']}.join")
        greeting = b"nbd-hold" + struct.pack("<I", 1)
        self.socket.sendall(greeting)
        if self.socket.recv(len(greeting), socket.MSG_WAITALL) != greeting:
            sys.exit("the holder speaks another version of the protocol")

    def send(self, variant, payload, *descriptors):
        head = struct.pack("<III", 4 + len(payload), len(descriptors), variant)
        socket.send_fds(self.socket, [head + payload], descriptors)

    def receive(self, variant):
        flags = socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC
        header, descriptors, _, _ = socket.recv_fds(self.socket, 8, 32, flags)
        if not header:
            sys.exit("the holder has closed the connection")
        message = self.socket.recv(struct.unpack("<II", header)[0], socket.MSG_WAITALL)
        if message[0] != variant:
            sys.exit(f"the holder refused: {string_at(message, 4)[0]}")
        return message, descriptors


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def string_at(data, at):
    end = at + 8 + struct.unpack_from("<Q", data, at)[0]
    return data[at + 8:end].decode(), end


class Lane:
    """A socket to the kernel and its part of the ledger. `q` and `i` are the ledger's words of 64
    and 32 bits: assigning to one is a single aligned store. struct.pack_into() is none, as it
    clears the bytes first; it will do for all that is not a commit."""

    def __init__(self, fd, memory, start, ring, transmit, longest, file):
        self.fd, self.memory, self.file, self.longest = fd, memory, file, longest
        self.q, self.i = memory.cast("Q"), memory.cast("I")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.control, self.slots = start, start + PAGE
        self.records = self.slots + SLOTS * 64
        self.ring = self.records + RECORDS * 64
        self.area, self.ring_size, self.area_size = self.ring + ring, ring, transmit
        self.vector, self.staged, self.over = (ctypes.c_uint64 * 4)(), 0, False
        # The kernel must not have to wait for this page when it stores a count.
        libc.mlock(ctypes.c_void_p(self.address + start), ctypes.c_size_t(PAGE))

    def places(self, position, length):
        """Where stream bytes lie: in two places if they cross the end of the ring."""
        start = (position - self.base) % self.ring_size
        first = min(length, self.ring_size - start)
        return [(self.ring + start, first)] + [(self.ring, length - first)] * (length > first)

    def received_bytes(self, position, length):
        return [self.memory[at:at + count] for at, count in self.places(position, length)]

    def transfer(self, call, flags, pair, epoch_at, fields, places):
        """One recvmmsg or sendmmsg. Its mmsghdr is part of a record in the ledger, so the kernel
        notes there how much has passed, before this process can die again."""
        for n, (at, count) in enumerate(places):
            self.vector[2 * n:2 * n + 2] = [self.address + at, count]
        epoch = self.q[epoch_at >> 3] + 1
        record = self.control + pair + (epoch & 1) * 128  # of the two the one that is not valid
        header = 0, 0, ctypes.addressof(self.vector), len(places), 0, 0, 0, 0
        struct.pack_into("=12Q", self.memory, record, *fields, 0, *header)
        self.q[epoch_at >> 3] = epoch  # commits it
        if libc.syscall(call, self.fd, self.address + record + 32, 1, flags, 0) == 1:
            return self.i[(record + 88) >> 2]
        code = ctypes.get_errno()
        if code in (errno.EPIPE, errno.ECONNRESET):
            raise EOFError
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code))
        return None

    def receive(self):
        if self.parsed >= self.received:
            self.base = self.received  # nothing lives in the ring: begin anew, in a warm cache
        space = self.ring_size - max(0, self.received - self.parsed)
        fields = self.received, self.base, min(space, RECEIVE_MOST)
        places = self.places(self.received, fields[2])
        # O_NONBLOCK instead would change the socket for every process that has a copy of it.
        count = self.transfer(RECVMMSG, socket.MSG_DONTWAIT, 128, self.control, fields, places)
        if count == 0:
            raise EOFError
        self.received += count or 0

    def take(self):
        """Gives slots to the requests that are here entirely. Every slot is free by now."""
        taken, position = [], self.parsed
        while len(taken) < SLOTS and position + 28 <= self.received:
            header = b"".join(self.received_bytes(position, 28))
            magic, flags, kind, cookie, offset, length = REQUEST.unpack(header)
            if magic != 0x25609513:
                raise Damaged(f"no request at stream position {position}")
            if kind == DISCONNECT:
                self.over = True  # and stays in the stream, so that a successor sees it too
                break
            payload = length if kind == WRITE else 0
            if payload <= self.longest and position + 28 + payload > self.received:
                break
            slot = self.slots + 64 * len(taken)
            struct.pack_into("=QQIIQQQQ", self.memory, slot + 8, cookie, offset, length,
                             flags << 16 | kind, position, time.monotonic_ns(), 0, 0)
            self.q[slot >> 3] = 1
            taken.append((position, slot))
            position += 28 + payload
        if taken:
            self.parsed = position
            self.q[(self.control + 8) >> 3] = position  # commits all of them
        return taken

    def execute(self, requests, poisoned=False):
        for position, slot in requests:
            cookie, offset, length, kind = struct.unpack_from("=QQII", self.memory, slot + 8)
            flags, kind = kind >> 16, kind & 0xFFFF
            fits = length <= self.longest or kind not in (READ, WRITE)
            data = length if kind == READ and fits else 0
            if self.staged > SEND_MOST or self.staged + 16 + data > self.area_size:
                self.send()
            at = self.area + self.staged
            pieces = [self.memory[at + 16:at + 16 + data]]
            if kind == WRITE and fits:
                pieces = self.received_bytes(position + 28, length)
            self.q[(slot + 48) >> 3] = time.monotonic_ns()
            self.i[(slot + 56) >> 2] += 1
            error = errno.EIO if poisoned else errno.EINVAL
            if fits and not poisoned:
                error = self.file.execute(kind, flags, offset, length, pieces, self.i)
            REPLY.pack_into(self.memory, at, 0x67446698, error, cookie)
            self.record(slot, error)
            self.q[slot >> 3] = self.sequence + 1  # no answer yet: that number is not committed
            self.staged += 16 + (0 if error else data)
        self.send()

    def record(self, slot, error):
        """A line in the flight recorder, for `nbd-ctl trace`."""
        number = self.q[(self.control + 32) >> 3]
        place = self.records + number % RECORDS * 64
        self.memory[place:place + 24] = self.memory[slot + 8:slot + 32]  # cookie to kind
        received, started, counts = self.q[(slot + 40) >> 3:(slot + 64) >> 3]
        struct.pack_into("=QQQIIQ", self.memory, place + 24, received, started,
                         time.monotonic_ns(), counts & 0xFFFFFFFF, error, self.q[40 >> 3])
        self.q[(self.control + 32) >> 3] = (number + 1) % (1 << 64)  # commits it

    def send(self):
        if self.staged:
            self.sequence += 1
            self.pump(0, self.staged)
            self.staged = 0

    def pump(self, sent, length):
        """Hands a transmission to the kernel from byte `sent` on, in as many calls as it takes.
        The first of them commits it, which is what answers its requests."""
        while sent < length:
            places = [(self.area + sent, length - sent)]
            fields = self.sequence, length, sent
            epoch_at = self.control + 16
            sent += self.transfer(SENDMMSG, socket.MSG_NOSIGNAL, 384, epoch_at, fields, places) or 0
        self.q[56 >> 3] = self.q[56 >> 3] or time.monotonic_ns()

    def recover(self, crashed):
        """Continues what the predecessor was doing; the result is to be executed again."""
        q, receive, send = self.q, self.control + 128, self.control + 384
        receive += (q[self.control >> 3] & 1) * 128
        send += (q[(self.control + 16) >> 3] & 1) * 128
        self.received = q[receive >> 3] + self.i[(receive + 88) >> 2]
        self.base, self.parsed = q[(receive + 8) >> 3], q[(self.control + 8) >> 3]
        self.sequence, length, sent = q[send >> 3:(send + 24) >> 3]
        sent += self.i[(send + 88) >> 2]
        if self.base > self.parsed or not sent <= length <= self.area_size:
            raise Damaged("impossible record")
        self.pump(sent, length)
        pending = []
        for slot in range(self.slots, self.records, 64):
            state, position = q[slot >> 3], q[(slot + 32) >> 3]
            if state == 1 and position >= self.parsed:
                q[slot >> 3] = 0  # filled and never committed: it will be taken again
            elif state == 1 or state > self.sequence:
                request = struct.unpack_from("=QQII", self.memory, slot + 8)
                header = REQUEST.unpack(b"".join(self.received_bytes(position, 28)))
                in_ring = *header[3:], header[1] << 16 | header[2]
                if request[3] & 0xFFFF == WRITE and request[2] <= self.longest and request != in_ring:
                    raise Damaged("a write is not the one in the ring")
                q[slot >> 3] = 1
                if q[(slot + 48) >> 3]:  # it was being executed when the predecessor died
                    q[(slot + 48) >> 3] = 0
                    self.i[(slot + 60) >> 2] += crashed
                pending.append((position, slot))
        return sorted(pending)

    def isolate(self, pending, limit):
        """Answers the requests that may have crashed the predecessors, each with nothing else under
        way, so that the next crash has one suspect. Returns the others, which come after them."""
        crashes = lambda request: self.i[(request[1] + 60) >> 2]
        for request in sorted(filter(crashes, pending), key=crashes):
            self.execute([request], poisoned=0 < limit <= crashes(request))
        return [request for request in pending if not crashes(request)]

    def poisoned(self, pending, limit):
        """Command, offset, length and crashes of the requests that no backend survives."""
        for _, slot in pending:
            _, offset, length, kind = struct.unpack_from("=QQII", self.memory, slot + 8)
            crashes = self.i[(slot + 60) >> 2]
            if 0 < limit <= crashes:
                yield kind & 0xFFFF, offset, length, crashes

    def work(self):
        """Answers all that was received. False once the kernel wants to disconnect."""
        while requests := self.take():
            self.execute(requests)
        return not self.over


class File:
    """What is served. Writes are in the page cache when they return, so no death undoes them."""

    def __init__(self, path):
        self.path, self.fd = path, os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size // 512 * 512
        if (attached := os.environ.get("NBD_EXPORT")) and "NBD_GROW" not in os.environ:
            self.size = min(self.size, int(attached.split(":")[0]))  # it may have grown since

    def settle(self, holder, kept):
        """The first backend leaves its locked descriptor with the holder; the others serve that
        very one. nbd-serve does the same under the same name."""
        if "file" not in kept:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder.send(1, string("file"), self.fd)
            holder.receive(2)
        elif os.path.samestat(os.fstat(kept["file"]), os.fstat(self.fd)):
            self.fd = kept["file"]
        else:
            raise OSError(f"{self.path} is not the file that was attached")

    def execute(self, kind, flags, offset, length, pieces, words):
        """Does what is asked; the result is an NBD error number, 0 for success."""
        known = FUA | NO_HOLE if kind == ZEROES else FUA
        aligned = offset % 512 == 0 and length % 512 == 0
        if kind > ZEROES or flags & ~known or not aligned or offset + length > self.size:
            return errno.EINVAL
        durable = kind == FLUSH or flags & FUA and kind in (WRITE, TRIM, ZEROES)
        if durable and words[36 >> 2]:
            return errno.EIO  # data was lost before; a flush that succeeds now would hide that
        try:
            if kind in (TRIM, ZEROES) and length:
                mode = 0x11 if flags & NO_HOLE else 0x03  # zero range or punch hole; keep the size
                if libc.fallocate(self.fd, mode, offset, length) and kind == ZEROES:
                    pieces = [BLANK[:length - done] for done in range(0, length, len(BLANK))]
            for piece in pieces:
                offset = self.move(os.preadv if kind == READ else os.pwritev, piece, offset)
            if durable:
                os.fdatasync(self.fd)
            return 0
        except OSError as error:
            if durable and (kind == FLUSH or error.errno == errno.EIO):
                words[36 >> 2] = error.errno
            print(f"{self.path}: request {kind} at {offset}: {error}", file=sys.stderr)
            return error.errno if error.errno in ON_WIRE else errno.EIO

    def move(self, call, piece, offset):
        while piece:
            count = call(self.fd, [piece], offset)
            if count == 0:
                raise OSError(errno.EIO, "the file has become shorter")
            piece, offset = piece[count:], offset + count
        return offset


def serve(holder, file, ledger, sockets, shape, crashed, limit):
    stride = PAGE + (SLOTS + RECORDS) * 64 + shape[0] + shape[1]
    memory = memoryview(mmap.mmap(ledger, PAGE + len(sockets) * stride))
    if struct.unpack_from("=QIIQQI", memory) != (0x4E42444C45444731, 3, len(sockets), *shape):
        raise Damaged("its header is not what the holder said")
    lanes = {fd: Lane(fd, memory, PAGE + n * stride, *shape, file) for n, fd in enumerate(sockets)}
    pending = {fd: lane.recover(crashed) for fd, lane in lanes.items()}
    for number, (fd, lane) in enumerate(lanes.items()):
        for poison in lane.poisoned(pending[fd], limit):
            holder.send(4, struct.pack("<IHQII", number, *poison))
    words = memory.cast("Q")
    words[56 >> 3], words[48 >> 3] = 0, time.monotonic_ns()  # nothing answered yet, but ready
    words[40 >> 3] += 1
    holder.send(2, struct.pack("<I", sum(map(len, pending.values()))))
    # First the suspects of all lanes: nothing else may be under way meanwhile.
    for fd, lane in lanes.items():
        pending[fd] = lane.isolate(pending[fd], limit)
    for fd, requests in pending.items():
        lanes[fd].execute(requests)
    waiting = list(lanes)  # at first all: of what was received before, select() knows nothing
    while lanes:
        for fd in waiting:
            if not lanes[fd].work():
                del lanes[fd]
        waiting = select.select(list(lanes), [], [])[0] if lanes else []
        for fd in waiting:
            lanes[fd].receive()


def main(path):
    file, holder = File(os.path.abspath(path)), Holder()
    export = struct.pack("<QIH", file.size, 512, FLAGS)
    holder.send(0, struct.pack("<I", 3) + string(f"file:{file.path}") + export + b"\0")
    grant, (ledger, *descriptors) = holder.receive(0)
    _device, at = string_at(grant, 4)
    lanes, *shape, left = struct.unpack_from("<IQQIQ", grant, at)
    names, at = [], at + 32
    for _ in range(left):
        name, at = string_at(grant, at)
        names.append(name)
    crashed, limit = struct.unpack_from("<?I", grant, at)
    try:
        file.settle(holder, dict(zip(names, descriptors[lanes:])))
        serve(holder, file, ledger, descriptors[:lanes], shape, crashed, limit)
    except EOFError:
        pass  # the kernel has closed its end: the device is going away
    except Exception as error:
        damaged = isinstance(error, Damaged)
        holder.send(3, string(f"{type(error).__name__}: {error}") + bytes([damaged]))
        raise


if __name__ == "__main__":
    main(sys.argv[1])
