"""The device level: runs in the machine that has the driver. See rounds.py for the other side."""

import json
import os
import shutil
import subprocess
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
        for number, name in enumerate(possible(plan["contestants"], by_name)):
            directory = os.path.join(base, str(number))
            os.mkdir(directory)
            place = Place(directory, size=size, binaries=plan["binaries"])
            place.image = os.path.join(directory, "image")
            if by_name[name].family == "file":
                fill(place.image, size)
            devices[name] = Device(by_name[name], place, number, plan.get("lanes"))
            if by_name[name].family == "memory":
                fill(devices[name].path, size)
            if by_name[name].family != "null":
                warm(devices[name].path)

        def one(name, point):
            measured = measure(devices[name], point, plan["seconds"])
            if point.empties and by_name[name].family != "null":
                fill(devices[name].path, size)
            return measured

        records = interleaved(points, list(devices), plan["rounds"], one, plan["device_level"])
        write(result_path, records)
    finally:
        for device in devices.values():
            device.stop()


def possible(names, by_name):
    """Those that can be measured here: ublk takes a driver and a program that may be missing."""
    ublk = [name for name in names if by_name[name].role == "ublk"]
    lacks = ublk and why_no_ublk()
    if lacks:
        print(f"bench: {', '.join(ublk)} left out: {lacks}", file=sys.stderr)
        return [name for name in names if name not in ublk]
    return names


def why_no_ublk():
    if shutil.which("rublk") is None:
        return "rublk is not there. Run: scripts/setup --for ublk"
    loaded = subprocess.run(["modprobe", "ublk_drv"], capture_output=True, text=True)
    if not os.path.exists("/dev/ublk-control"):
        return f"this kernel has no ublk driver ({loaded.stderr.strip() or 'nothing said'}). Try: --kernel 6.12"
    return None


def write(path, records):
    with open(path, "w") as file:
        json.dump(records, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
