"""Who is measured: how each server is started, and how it becomes a device."""

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field

PATIENCE = 60


@dataclass(frozen=True)
class Contestant:
    name: str
    # memory, file or null: what it keeps its data in. Only those of one family are compared.
    family: str
    # ours, peer, ublk (no NBD, but what else gives a program a device) or limit.
    role: str
    # Makes a command line from a Place.
    command: object
    # How it is attached, at the device level.
    attach: str = "nbd-client"
    # It goes into the background and writes its number into the place's file "pid".
    daemon: bool = False
    export: str = ""


@dataclass
class Place:
    """Where a contestant finds what it needs."""

    directory: str
    transport: str = "unix"
    port: int = 0
    size: int = 0
    image: str = ""
    binaries: str = ""
    extra: dict = field(default_factory=dict)

    @property
    def socket(self):
        return os.path.join(self.directory, "socket")

    @property
    def address(self):
        return f"unix:{self.socket}" if self.transport == "unix" else f"tcp:127.0.0.1:{self.port}"

    def uri(self, export):
        if self.transport == "unix":
            return f"nbd+unix:///{export}?socket={self.socket}"
        return f"nbd://127.0.0.1:{self.port}/{export}"

    def program(self, name):
        return os.path.join(self.binaries, name)


def _limit(place):
    command = [place.program("bench-limit"), place.address]
    return command + ["--size", str(place.size >> 20)]


def _limit_file(place):
    return [place.program("bench-limit"), place.address, "--file", place.image]


def _nbdkit(place, *plugin):
    where = ["-U", place.socket] if place.transport == "unix" else ["-i", "127.0.0.1", "-p", str(place.port)]
    return ["nbdkit", "-f", *where, *plugin]


def _qemu(place, *options):
    where = ["-k", place.socket] if place.transport == "unix" else ["-b", "127.0.0.1", "-p", str(place.port)]
    return ["qemu-nbd", *where, "-t", "-e", "512", "-f", "raw", "--discard=unmap", *options, place.image]


def _nbd_server(place):
    # Without a port it would serve its standard input.
    lines = ["[generic]", "listenaddr = 127.0.0.1", f"port = {place.port or free_port()}"]
    if place.transport == "unix":
        lines.append(f"unixsock = {place.socket}")
    lines += ["[default]", f"exportname = {place.image}", "trim = true", "flush = true"]
    path = os.path.join(place.directory, "config")
    with open(path, "w") as config:
        config.write("\n".join(lines) + "\n")
    return ["nbd-server", "-C", path, "-p", os.path.join(place.directory, "pid")]


def _ours(place, spec):
    return [place.program("nbd-serve"), "--listen", place.address, spec]


SERVERS = [
    Contestant("nbd-serve mem", "memory", "ours", lambda p: _ours(p, f"mem:{p.size}")),
    Contestant("nbdkit memory", "memory", "peer", lambda p: _nbdkit(p, "memory", str(p.size))),
    Contestant("limit memory", "memory", "limit", _limit),
    Contestant("nbd-serve file", "file", "ours", lambda p: _ours(p, f"file:{p.image}")),
    Contestant("nbdkit file", "file", "peer", lambda p: _nbdkit(p, "file", p.image)),
    Contestant("qemu-nbd", "file", "peer", lambda p: _qemu(p, "--cache=writeback")),
    Contestant("nbd-server", "file", "peer", _nbd_server, daemon=True, export="default"),
    Contestant("limit file", "file", "limit", _limit_file),
    # Only when asked for by name.
    Contestant("qemu-nbd io_uring", "file", "peer", lambda p: _qemu(p, "--cache=writeback", "--aio=io_uring")),
    Contestant("qemu-nbd none", "file", "peer", lambda p: _qemu(p, "--cache=none")),
    Contestant("qemu-nbd writethrough", "file", "peer", lambda p: _qemu(p, "--cache=writethrough")),
]


def _attach(*options):
    return lambda p: [p.program("nbd-ctl"), "attach", *options, p.extra["spec"]]


DEVICES = [
    Contestant("ours mem ioctl", "memory", "ours", "mem", "ioctl"),
    Contestant("ours mem netlink", "memory", "ours", "mem", "netlink"),
    *[c for c in SERVERS if c.family == "memory" and c.role != "ours"],
    Contestant("ours file ioctl", "file", "ours", "file", "ioctl"),
    Contestant("ours file netlink", "file", "ours", "file", "netlink"),
    Contestant("nbdkit file", "file", "peer", lambda p: _nbdkit(p, "file", p.image)),
    Contestant("ours nbdkit:file netlink", "file", "ours", "nbdkit:file", "netlink"),
    Contestant("qemu-nbd -c", "file", "peer", None, "qemu-nbd"),
    Contestant("nbd-server", "file", "peer", _nbd_server, daemon=True, export="default"),
    Contestant("rublk loop", "file", "ublk", lambda p: ["loop", "-f", p.image], "rublk"),
    Contestant("limit file", "file", "limit", _limit_file),
    # What is left of a request where no data is moved.
    Contestant("ours null ioctl", "null", "ours", "null", "ioctl"),
    Contestant("ours null netlink", "null", "ours", "null", "netlink"),
    Contestant("ours nbdkit:null netlink", "null", "ours", "nbdkit:null", "netlink"),
    Contestant("nbdkit null", "null", "peer", lambda p: _nbdkit(p, "null", str(p.size))),
    Contestant("rublk null", "null", "ublk", lambda p: ["null"], "rublk"),
]

ON_REQUEST = {"qemu-nbd io_uring", "qemu-nbd none", "qemu-nbd writethrough"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server that has been started and listens."""

    def __init__(self, contestant, place):
        self.contestant, self.place = contestant, place
        command = contestant.command(place)
        if shutil.which(command[0]) is None:
            raise RuntimeError(f"{command[0]}: not found. Run: scripts/setup --for bench")
        self.log_path = os.path.join(place.directory, "log")
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self.process.pid
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self):
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > deadline or (not self.contestant.daemon and self.process.poll() is not None):
                with open(self.log_path) as log:
                    raise RuntimeError(f"{self.contestant.name} does not listen: {log.read().strip()}")
            time.sleep(0.02)
        if self.contestant.daemon:
            self.process.wait()
            with open(os.path.join(self.place.directory, "pid")) as file:
                self.pid = int(file.read())

    def _answers(self):
        if self.contestant.daemon and not os.path.exists(os.path.join(self.place.directory, "pid")):
            return False
        try:
            if self.place.transport == "unix":
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(self.place.socket)
                    return probe.recv(8) == b"NBDMAGIC"
            with socket.create_connection(("127.0.0.1", self.place.port)) as probe:
                return probe.recv(8) == b"NBDMAGIC"
        except OSError:
            return False

    def stop(self):
        if self.contestant.daemon:
            try:
                os.kill(self.pid, signal.SIGTERM)
            except OSError:
                pass
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
