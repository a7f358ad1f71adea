#!/usr/bin/env python3
"""A client of a holder's socket that keeps to no rule: `hostile-client.py SOCKET MODE`. What it sends goes from
all valid to noise, in pieces, in floods, with descriptors of every kind. It prints how often it was let in;
`kernel_attack.rs` looks at what becomes of the holder."""
import array, os, random, select, socket, struct, sys, tempfile, time

path, mode = sys.argv[1:]
noise = random.Random(7)
GREETING = b"nbd-hold" + struct.pack("<I", 1)
# The last numbers of requests and of a backend's messages, and some beyond.
TAGS = range(0, 20)
STATUS = struct.pack("<I", 0)
entered = 0


def enter(greeting=GREETING):
    """A connection, with the holder's greeting unread."""
    global entered
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.settimeout(10)
    entered += 1
    try:
        connection.sendall(greeting)
    except OSError:
        pass  # It was thrown out already: others came.
    return connection


def frame(payload, count=0):
    return struct.pack("<II", len(payload), count) + payload


def attempt(*steps):
    """A connection on which these are sent, each bytes or (bytes, descriptors), and which is left then."""
    connection = enter(b"")
    try:
        for step in steps:
            data, descriptors = step if isinstance(step, tuple) else (step, [])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            connection.sendmsg([data], rights)
        select.select([connection], [], [], 0.02)
    except OSError:
        pass  # It was thrown out, as it should be.
    connection.close()


def payloads():
    """What may follow the number of a message."""
    yield b""
    yield bytes(8)
    yield bytes(64)
    yield b"\xff" * 64
    yield struct.pack("<Q", 1 << 62)
    yield struct.pack("<BQ", 1, 3) + b"abc"
    yield noise.randbytes(200)
    yield noise.randbytes(50000)


def lingering():
    """A TCP socket that is not closed before its peer has read what it never reads."""
    listener = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(listener.getsockname())
    peer = listener.accept()[0]
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(65536))
    except BlockingIOError:
        pass
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return sender, peer


def kinds():
    """Descriptors of every kind, and what keeps them."""
    yield [], os.open("/dev/null", os.O_RDWR)
    yield [], os.open("/", os.O_RDONLY)
    yield [], os.open("/", os.O_PATH)
    yield [], os.memfd_create("strange")
    yield [], os.pipe()[0]
    yield [], os.pipe()[1]
    yield [], os.eventfd(0)
    watch = select.epoll()
    yield [], os.dup(watch.fileno())
    nested, other = socket.socketpair()
    try:
        socket.send_fds(nested, [b"x"], [0] * 200)
    except OSError:
        pass  # So many of this user are under way already.
    nested.close()
    yield [], other.detach()
    # A connection to the holder, in which that very connection is under way.
    own = enter()
    try:
        socket.send_fds(own, [STATUS], [own.fileno()])
    except OSError:
        pass
    yield [], own.detach()
    sender, peer = lingering()
    yield [peer], sender.detach()


def garbage():
    for _ in range(50):
        attempt(noise.randbytes(noise.randrange(1, 5000)))
        attempt(GREETING, noise.randbytes(noise.randrange(1, 5000)))
        attempt(GREETING[: noise.randrange(12)])


def messages():
    for tag in TAGS:
        for payload in payloads():
            message = struct.pack("<I", tag) + payload
            attempt(GREETING, frame(message))
            attempt(GREETING + frame(STATUS) + frame(message)[: noise.randrange(len(message) + 8)])


def frames():
    for length, count in [(0, 0), (4, 1), (4, 33), (1 << 20, 0), ((1 << 20) + 1, 0), (0xFFFFFFFF, 0), (4, 0xFFFFFFFF)]:
        attempt(GREETING, struct.pack("<II", length, count) + STATUS)


def pieces():
    whole = GREETING + frame(STATUS) * 3
    crowd = [enter(b"") for _ in range(20)]
    for at in range(len(whole)):
        for connection in crowd:
            try:
                connection.send(whole[at : at + 1])
            except OSError:
                pass


def flood():
    """Asks again and again, and reads nothing."""
    crowd = [enter() for _ in range(20)]
    for connection in crowd:
        connection.setblocking(False)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for connection in crowd:
            try:
                connection.send(frame(STATUS) * 50)
            except OSError:
                pass


def questions():
    """Asks without a pause, and reads all answers."""
    crowd = [enter() for _ in range(8)]
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for connection in crowd:
            try:
                connection.sendall(frame(STATUS) * 5)
                connection.recv(1 << 20, socket.MSG_DONTWAIT)
            except OSError:
                pass


def crowd():
    """Comes with many, and says nothing for a while."""
    people = []
    for _ in range(300):
        try:
            people.append(enter(b""))
        except OSError:
            break
    time.sleep(2)


def hold():
    """Comes with more than are let in, says who it is and nothing else, and stays."""
    people = [enter() for _ in range(40)]
    time.sleep(3600)
    del people


def descriptors():
    for kept, descriptor in kinds():
        for count in [1, 2, 32, 33, 253]:
            many = [descriptor] * count
            attempt((GREETING, many))
            attempt(GREETING, (frame(STATUS, count), many))
            attempt(GREETING, (frame(STATUS), many))
            attempt(GREETING, frame(STATUS)[:6], (frame(STATUS)[6:], many))
            # Behind what will not be read any more.
            attempt(b"x" * 100, (b"x" * 100, many))
        # The last one is under way to the holder, and then in no process.
        attempt_last(descriptor)
        del kept


def urgent():
    """Bytes that go past the others, with descriptors and without."""
    for kept, descriptor in kinds():
        for greeting in [b"", GREETING]:
            connection = enter(greeting)
            try:
                socket.send_fds(connection, [b"x"], [descriptor], socket.MSG_OOB)
                connection.send(b"x", socket.MSG_OOB)
                connection.sendall(frame(STATUS))
            except OSError:
                pass
            time.sleep(0.01)
            connection.close()
        del kept


def attempt_last(descriptor):
    connection = enter()
    try:
        socket.send_fds(connection, [frame(STATUS)], [descriptor])
        os.close(descriptor)
        select.select([connection], [], [], 0.2)
    except OSError:
        pass
    connection.close()


modes = [garbage, messages, frames, pieces, flood, questions, crowd, descriptors, urgent, hold]
try:
    {one.__name__: one for one in modes}[mode]()
except PermissionError:
    pass
print(entered)
