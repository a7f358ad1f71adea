"""How cost grows: one thing is made larger step by step, and all else stays as it is.

Each axis is a level of its own in the records, and its steps are the points. What they say is
compared like everything else: inside a round, between contestants of one family.
"""

import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass

from .contestants import DEVICES, ON_REQUEST, SERVERS, Place
from .device import Device, fill, fio, result, warm
from .native import Field
from .points import Point
from .processes import cpu_seconds, pss_kib, tree
from .rounds import interleaved

MIB = 1 << 20
SIZES = {"1 MiB": MIB, "1 GiB": MIB << 10, "1 TiB": MIB << 20, "16 TiB": MIB << 24}
STEPS = {
    "in flight": [1, 2, 4, 8, 16, 32, 64, 128, 256],
    "connections": [1, 4, 16, 64, 256, 500],
    "size": list(SIZES),
    "lanes": [1, 2, 4],
    "devices": [1, 4, 16, 64],
}
LABELS = {"in flight": "requests in flight", "connections": "connections", "size": "size of the export",
          "lanes": "lanes", "devices": "number of devices"}
# What devices hold is not what grows here.
SMALL = 4 * MIB
IDLE_SECONDS = 5
MOST_DEVICES = max(STEPS["devices"])


@dataclass(frozen=True)
class Step(Point):
    """A point that knows how far along its axis it is."""

    value: int = 0


def steps(axis, **shape):
    for value in STEPS[axis]:
        more = {"in flight": "depth", "connections": "jobs"}.get(axis)
        yield Step(str(value), "randread", 4096, **{"depth": 4, **shape, **({more: value} if more else {})},
                   value=SIZES.get(value, value))


def servers(plan):
    """The axes of the server level, on this machine."""
    records = []
    contestants = [c for c in SERVERS if c.name in plan["servers"] or not plan["servers"] and c.name not in ON_REQUEST]
    names = [c.name for c in contestants]
    with ExitStack() as stack:
        field = Field(stack, plan, contestants, "unix", "ram")
        for axis, shape in (("in flight", {}), ("connections", {"depth": 1})):
            records += interleaved(list(steps(axis, **shape)), names, plan["rounds"], field.measure,
                                   f"server by {LABELS[axis]}")
    files = [c for c in contestants if c.family == "file"]

    def sized(name, step):
        with ExitStack() as stack:
            place = {**plan, "size": step.value}
            only = [c for c in files if c.name == name]
            return Field(stack, place, only, "unix", "sparse").measure(name, step)

    if files:
        records += interleaved(list(steps("size", depth=16)), [c.name for c in files], plan["rounds"], sized,
                               f"server by {LABELS['size']}")
    return records


class Fleet:
    """So many devices of one contestant, one beside the other."""

    def __init__(self, stack, plan, name, count=1, size=SMALL, lanes=None):
        contestant = next(c for c in DEVICES if c.name == name)
        base = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        self.devices = []
        start = time.monotonic()
        for number in range(count):
            directory = os.path.join(base, str(number))
            os.mkdir(directory)
            place = Place(directory, size=size, binaries=plan["binaries"])
            place.image = os.path.join(directory, "image")
            if contestant.family == "file":
                with open(place.image, "wb") as file:
                    file.truncate(size)
            self.devices.append(Device(contestant, place, number, lanes))
            stack.callback(self.devices[-1].stop)
        self.attached = (time.monotonic() - start) / count
        if contestant.family == "memory":
            for device in self.devices:
                fill(device.path, size)
                warm(device.path)

    def pids(self):
        return sorted({pid for device in self.devices for root in device.roots() for pid in tree(root)})

    def idle(self):
        """Processor time of all processes together while nobody asks for anything."""
        pids = self.pids()
        before = cpu_seconds(pids)
        time.sleep(IDLE_SECONDS)
        return cpu_seconds(pids) - before

    def measure(self, step, seconds):
        pids = self.pids()
        before = cpu_seconds(pids)
        job = fio([device.path for device in self.devices], step, seconds)
        used = {"cpu_s": cpu_seconds(pids) - before, "resident_kib": pss_kib(pids)}
        return {**result(job, used), "errors": job["error"]}


def devices(plan):
    """The axes of the device level, in the machine that has the driver."""
    family = {c.name: c.family for c in DEVICES}
    memory = [name for name in plan["contestants"] if family[name] == "memory"]
    files = [name for name in plan["contestants"] if family[name] == "file"]
    records = []
    for axis, names, shape, argument in (
        ("in flight", memory, {}, None),
        ("lanes", memory, {"depth": 16, "jobs": 2}, "lanes"),
        ("devices", memory, {}, "count"),
        ("size", files, {"depth": 16}, "size"),
    ):
        def one(name, step, argument=argument):
            with ExitStack() as stack:
                fleet = Fleet(stack, plan, name, **({argument: step.value} if argument else {}))
                idle = {"idle_cpu_s": fleet.idle(), "attach_s": fleet.attached} if argument == "count" else {}
                return {**fleet.measure(step, plan["seconds"]), **idle}

        if names:
            records += interleaved(list(steps(axis, **shape)), names, plan["rounds"], one, f"device by {LABELS[axis]}")
    return records
