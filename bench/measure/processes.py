"""What processes have used: processor time, context switches, system calls, memory."""

import os
import shutil
import signal
import subprocess
import time


def tree(pid):
    """A process and all that descend from it."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    found, todo = [], [pid]
    while todo:
        now = todo.pop()
        found.append(now)
        todo += children.get(now, [])
    return found


def cpu_seconds(pids):
    """Processor time of all threads, dead ones included, in nanosecond steps."""
    total = 0.0
    for pid in pids:
        try:
            # The clock that clock_getcpuclockid(3) names.
            total += time.clock_gettime((~pid << 3) | 2)
        except OSError:
            pass
    return total


def switches(pids):
    """Context switches of all threads that live, voluntary ones and others."""
    total = 0
    for pid in pids:
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in threads:
            total += status(f"{pid}/task/{thread}", "voluntary_ctxt_switches")
            total += status(f"{pid}/task/{thread}", "nonvoluntary_ctxt_switches")
    return total


def resident_kib(pids):
    """Resident memory; pages that several of them map are counted once for each."""
    return sum(status(pid, "VmRSS") for pid in pids)


def pss_kib(pids):
    """Resident memory; pages that several of them map are shared out among them."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as lines:
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:
            pass
    return total


def status(path, field):
    try:
        with open(f"/proc/{path}/status") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


class SystemCalls:
    """Counts system calls by a tracepoint, which costs the counted hardly anything."""

    works = None

    def __init__(self, pids):
        self.perf = None
        if SystemCalls.works is None:
            SystemCalls.works = self.is_possible()
        if SystemCalls.works:
            command = ["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter"]
            command += ["-p", ",".join(map(str, pids))]
            self.perf = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            time.sleep(0.1)

    @staticmethod
    def is_possible():
        if shutil.which("perf") is None:
            return False
        command = ["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "true"]
        tried = subprocess.run(command, capture_output=True, text=True)
        return tried.returncode == 0 and tried.stderr.split(",")[0].strip().isdigit()

    def count(self):
        """The number of calls, or nothing where it cannot be known."""
        if self.perf is None:
            return None
        self.perf.send_signal(signal.SIGINT)
        words = self.perf.communicate()[1]
        for line in words.splitlines():
            first = line.split(",")[0].strip()
            if first.isdigit():
                return int(first)
        return None


class Usage:
    """What a process and its descendants use between two moments."""

    def __init__(self, pid, calls=False):
        self.root = pid
        self.pids = tree(pid)
        self.calls = SystemCalls(self.pids) if calls else None
        self.cpu = cpu_seconds(self.pids)
        self.switches = switches(self.pids)

    def until_now(self):
        now = {
            "cpu_s": cpu_seconds(self.pids) - self.cpu,
            "switches": switches(self.pids) - self.switches,
            "resident_kib": resident_kib(self.pids),
        }
        if self.calls is not None:
            now["system_calls"] = self.calls.count()
        return now
