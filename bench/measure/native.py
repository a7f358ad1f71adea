"""The server level: servers on this machine, and the load on a socket."""

import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack

from .contestants import ON_REQUEST, SERVERS, Place, Server, free_port
from .device import FIO, fill, result, run
from .processes import Usage
from .rounds import interleaved


def knows_network(binaries):
    """Whether this nbd-serve can listen for clients."""
    helped = subprocess.run([f"{binaries}/nbd-serve", "--help"], capture_output=True, text=True)
    return "--listen" in helped.stdout


class Field:
    """All servers of a transport, running side by side, each with an image of its own."""

    def __init__(self, stack, plan, contestants, transport, storage):
        self.plan, self.transport, self.storage = plan, transport, storage
        parent = plan["disk"] if storage in ("disk", "cold") else "/dev/shm"
        os.makedirs(parent, exist_ok=True)
        base = stack.enter_context(tempfile.TemporaryDirectory(dir=parent, prefix="nbd-bench-"))
        # Names of sockets are short.
        sockets = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="nbd-bench-"))
        self.servers = {}
        for number, contestant in enumerate(contestants):
            if contestant.family == "memory" and storage != "ram":
                continue
            directory = os.path.join(sockets, str(number))
            os.mkdir(directory)
            place = Place(directory, transport, free_port(), plan["size"], binaries=plan["binaries"])
            if contestant.family == "file":
                place.image = os.path.join(base, f"{number}.img")
                if storage == "sparse":
                    with open(place.image, "wb") as file:
                        file.truncate(plan["size"])
                else:
                    fill(place.image, plan["size"])
            server = Server(contestant, place)
            stack.callback(server.stop)
            self.servers[contestant.name] = server
            if contestant.family == "memory":
                self.fill(server)

    def fill(self, server):
        """Writes to all of it."""
        self.load(server, "read", 4096, 1, 1, ["--fill", "--requests", "1"])

    def load(self, server, pattern, block, depth, jobs, more, observe=False):
        """Runs our own load generator; looks at the server while it is connected."""
        command = [server.place.program("bench-load"), server.place.address, "--wait", "--export", server.contestant.export]
        command += ["--pattern", pattern, "--block", str(block), "--depth", str(depth), "--jobs", str(jobs), *more]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            ready = client.stdout.readline()
            if not ready.startswith("ready"):
                raise RuntimeError(f"{server.contestant.name}: bench-load could not connect")
            usage = Usage(server.pid, calls=observe)
            client.stdin.write("go\n")
            client.stdin.flush()
            words = client.stdout.readline()
            used = usage.until_now()
        if not words:
            raise RuntimeError(f"{server.contestant.name}: bench-load failed")
        return {**json.loads(words), **used}

    def measure(self, name, point):
        server = self.servers[name]
        if point.storage == "cold":
            with open(server.place.image, "rb") as image:
                os.fsync(image.fileno())
                os.posix_fadvise(image.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        measured = self.ask(server, point)
        if point.empties:
            self.fill(server)
        return measured

    def ask(self, server, point):
        """Puts a point's load on a server."""
        if self.plan["client"] == "fio":
            return self.fio(server, point)
        if self.plan["client"] == "nbdcopy":
            return self.copy(server, point)
        more = ["--seconds", str(self.plan["seconds"])]
        if self.plan["client"] == "sleeping":
            more.append("--sleep")
        return self.load(server, point.pattern, point.block, point.depth, point.jobs, more, observe=True)

    def fio(self, server, point):
        usage = Usage(server.pid)
        pattern = FIO.get(point.pattern, [f"--rw={point.pattern}", "--rwmixread=70"])
        said = run(
            "fio", "--name=point", "--ioengine=nbd", f"--uri={server.place.uri(server.contestant.export)}", *pattern,
            f"--size={self.plan['size']}", f"--bs={point.block}", f"--iodepth={point.depth}",
            f"--numjobs={point.jobs}", "--time_based", f"--runtime={max(1, round(self.plan['seconds']))}",
            "--group_reporting", "--norandommap", "--output-format=json", "--lat_percentiles=1",
        )
        # Connections of fio's are gone by now, and their threads with them.
        used = usage.until_now()
        return result(json.loads(said[said.index("{"):])["jobs"][0], used)

    def copy(self, server, point):
        if point.pattern != "read":
            raise ValueError("nbdcopy reads only, here")
        start = time.monotonic()
        run("nbdcopy", f"--request-size={point.block}", "--requests=4", "--connections=1",
            server.place.uri(server.contestant.export), "null:")
        seconds = time.monotonic() - start
        requests = self.plan["size"] / point.block
        return {"requests": requests, "seconds": seconds, "iops": requests / seconds, "errors": 0,
                "mb_per_second": self.plan["size"] / seconds / 1e6}


def measure(plan, points):
    """All points, for each transport and storage that they want."""
    records = []
    contestants = [c for c in SERVERS if c.name in plan["servers"] or not plan["servers"] and c.name not in ON_REQUEST]
    if not knows_network(plan["binaries"]):
        print("bench: nbd-serve does not listen on the network yet: only the others are measured")
        contestants = [c for c in contestants if c.role != "ours"]
    for transport in plan["transports"]:
        for storage in dict.fromkeys(point.storage for point in points):
            these = [point for point in points if point.storage == storage]
            with ExitStack() as stack:
                field = Field(stack, plan, contestants, transport, storage)
                level = f"server, {transport}, {plan['client']}"
                if field.servers:
                    records += interleaved(these, list(field.servers), plan["rounds"], field.measure, level)
    return records
