"""The device level: runs in the machine that has the driver. See rounds.py for the other side."""

import json
import os
import sys
import tempfile

from . import scaling
from .contestants import DEVICES, Place
from .device import Device, fill, measure, warm
from .points import POINTS
from .rounds import interleaved


def main(plan_path, result_path):
    with open(plan_path) as file:
        plan = json.load(file)
    os.makedirs("/run/lock", exist_ok=True)
    by_name = {contestant.name: contestant for contestant in DEVICES}
    points = [point for point in POINTS if point.name in plan["points"]]
    if plan["scaling"]:
        return write(result_path, scaling.devices(plan))
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
            measured = measure(devices[name], point, plan["seconds"])
            if point.empties:
                fill(devices[name].path, size)
            return measured

        records = interleaved(points, list(devices), plan["rounds"], one, "device")
        write(result_path, records)
    finally:
        for device in devices.values():
            device.stop()


def write(path, records):
    with open(path, "w") as file:
        json.dump(records, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
