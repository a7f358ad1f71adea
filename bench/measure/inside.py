"""The device level: runs in the machine that has the driver. See rounds.py for the other side."""

import json
import os
import sys
import tempfile

from .contestants import DEVICES, Place
from .device import Device, measure, run
from .points import POINTS
from .rounds import interleaved


def main(plan_path, result_path):
    with open(plan_path) as file:
        plan = json.load(file)
    os.makedirs("/run/lock", exist_ok=True)
    by_name = {contestant.name: contestant for contestant in DEVICES}
    points = [point for point in POINTS if point.name in plan["points"]]
    base = tempfile.mkdtemp(dir="/dev/shm")
    size = plan["size"]
    devices = {}
    try:
        for number, name in enumerate(plan["contestants"]):
            directory = os.path.join(base, str(number))
            os.mkdir(directory)
            place = Place(directory, size=size, binaries=plan["binaries"])
            place.image = os.path.join(directory, "image")
            if by_name[name].family == "file":
                fill(place.image, size)
            devices[name] = Device(by_name[name], place, number, plan.get("lanes"))
            if by_name[name].family == "memory":
                fill(devices[name].path, size)
            warm(devices[name].path)

        def one(name, point):
            return measure(devices[name], point, plan["seconds"])

        records = interleaved(points, list(devices), plan["rounds"], one, "device")
        with open(result_path, "w") as file:
            json.dump(records, file)
    finally:
        for device in devices.values():
            device.stop()


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


if __name__ == "__main__":
    main(*sys.argv[1:])
