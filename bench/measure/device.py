"""Devices: how a contestant becomes one, and how fio puts load on it."""

import json
import os
import re
import subprocess
import time

from .contestants import Server
from .processes import Usage

PATIENCE = 60


def run(*command, **options):
    """Runs a command that must succeed; returns what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class Device:
    """A contestant that is attached."""

    def __init__(self, contestant, place, number, lanes=None):
        self.contestant, self.place = contestant, place
        self.number = number
        self.path = f"/dev/ublkb{number}" if contestant.attach == "rublk" else f"/dev/nbd{number}"
        self.server = None
        getattr(self, "_by_" + contestant.attach.replace("-", "_"))(lanes)
        deadline = time.monotonic() + PATIENCE
        # The size of rublk's null is its own.
        while self._size() != place.size and not (contestant.family == "null" and self._size()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{contestant.name}: {self.path} has {self._size()} bytes, not {place.size}")
            time.sleep(0.02)
        # What the block layer does is the same for all.
        with open(f"/sys/block/{os.path.basename(self.path)}/queue/scheduler", "w") as scheduler:
            scheduler.write("none")

    def _size(self):
        try:
            with open(f"/sys/block/{os.path.basename(self.path)}/size") as size:
                return int(size.read()) * 512
        except FileNotFoundError:
            return 0

    def _by_nbd_client(self, lanes):
        self.server = Server(self.contestant, self.place)
        self.pid = self.server.pid
        several = ["-C", str(lanes)] if lanes else []
        name = ["-N", self.contestant.export] if self.contestant.export else []
        run("nbd-client", "-unix", self.place.socket, self.path, "-b", "4096", *name, *several)

    def _by_qemu_nbd(self, _lanes):
        pid = os.path.join(self.place.directory, "pid")
        run("qemu-nbd", "-c", self.path, "--fork", "--pid-file", pid, "-f", "raw", "--cache=writeback",
            self.place.image)
        with open(pid) as file:
            self.pid = int(file.read())

    def _by_rublk(self, lanes):
        kind, *options = self.contestant.command(self.place)
        run("rublk", "add", kind, "-n", str(self.number), "-q", str(lanes or 1), "--quiet", *options)
        self.pid = int(re.search(r"daemon pid (\d+)", run("rublk", "list", "-n", str(self.number))).group(1))

    def _ours(self, api, lanes):
        specs = {"file": f"file:{self.place.image}", "nbdkit:file": f"nbdkit:file,{self.place.image}",
                 "nbdkit:null": f"nbdkit:null,{self.place.size}"}
        spec = specs.get(self.contestant.command, f"{self.contestant.command}:{self.place.size},block=4096")
        several = ["--lanes", str(lanes)] if lanes else []
        ctl = self.place.program("nbd-ctl")
        run(ctl, "attach", "--device", self.path, "--kernel-api", api, *several, spec)
        status = json.loads(run(ctl, "status", self.path, "--json"))
        self.pid = status["backend"]["pid"]

    def _by_ioctl(self, lanes):
        self._ours("ioctl", lanes)

    def _by_netlink(self, lanes):
        self._ours("netlink", lanes)

    def roots(self):
        """Those that all of its processes descend from."""
        if self.contestant.role != "ours":
            return [self.pid]
        ctl = self.place.program("nbd-ctl")
        return [json.loads(run(ctl, "status", self.path, "--json"))["holder_pid"]]

    def stop(self):
        if self.contestant.role == "ours":
            run(self.place.program("nbd-ctl"), "detach", "--force", self.path)
        elif self.contestant.attach == "rublk":
            run("rublk", "del", "-n", str(self.number))
        elif self.server is None:
            run("qemu-nbd", "-d", self.path)
        else:
            run("nbd-client", "-d", self.path)
            self.server.stop()


FIO = {"fsync": ["--rw=randwrite", "--fsync=1"], "trim": ["--rw=randtrim"]}


def fio(paths, point, seconds):
    """One point on one device or several, each with its own jobs."""
    pattern = FIO.get(point.pattern, [f"--rw={point.pattern}", "--rwmixread=70"])
    said = run(
        "fio", "--direct=1", "--ioengine=libaio",
        *pattern, f"--bs={point.block}", f"--iodepth={point.depth}", f"--numjobs={point.jobs}",
        "--time_based", f"--runtime={round(seconds * 1000)}ms", "--group_reporting", "--randrepeat=1",
        "--norandommap", "--output-format=json", "--lat_percentiles=1", "--clat_percentiles=0",
        *(word for path in paths for word in (f"--name={os.path.basename(path)}", f"--filename={path}")),
    )
    return json.loads(said[said.index("{"):])["jobs"][0]


def measure(device, point, seconds):
    """What fio says, and what the server's processes used for it."""
    usage = Usage(device.pid)
    job = fio([device.path], point, seconds)
    return result(job, usage.until_now())


def result(job, used):
    """fio's words in those of our own load generator."""
    sides = [job[side] for side in ("read", "write", "trim") if job[side]["total_ios"] > 0]
    requests = sum(side["total_ios"] for side in sides)
    most = max(sides, key=lambda side: side["total_ios"])
    percentiles = most["lat_ns"].get("percentile", {})
    seconds = max(side["runtime"] for side in sides) / 1000
    return {
        "requests": requests,
        "seconds": seconds,
        "iops": requests / seconds,
        "mb_per_second": sum(side["io_bytes"] for side in sides) / seconds / 1e6,
        "errors": job["total_err"] if "total_err" in job else job["error"],
        "median_us": percentiles.get("50.000000", 0) / 1000,
        "p99_us": percentiles.get("99.000000", 0) / 1000,
        "p999_us": percentiles.get("99.900000", 0) / 1000,
        **used,
    }


def warm(path):
    """Reads all of it once: the first touch of a page is slow in user-mode Linux."""
    run("dd", f"if={path}", "of=/dev/null", "bs=1M", "iflag=direct", "status=none")


def fill(path, size):
    """Data everywhere, so that nobody is measured reading holes."""
    block = os.urandom(1 << 20)
    with open(path, "r+b" if os.path.exists(path) else "w+b", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(block)
        os.fsync(file.fileno())
