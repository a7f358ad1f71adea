"""Facts about the machine, without which numbers mean nothing."""

import os
import platform
import re
import subprocess


def facts(root):
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20} MiB",
        "kernel": platform.release().split("-")[0],
        "commit": output("git", "-C", root, "describe", "--always", "--dirty"),
        "compiler": output("rustc", "--version"),
        "nbdkit": output("nbdkit", "--version"),
        "qemu-nbd": first_line(output("qemu-nbd", "--version")),
        "nbd-server": version(output("nbd-server", "-V")),
        "nbd-client": version(output("nbd-client", "-V")),
        "fio": output("fio", "--version"),
        "load at the beginning": load(),
    }


def load():
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def processor():
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "not there"
    return (done.stdout or done.stderr).strip()


def first_line(text):
    return text.splitlines()[0] if text else ""


def version(text):
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found.group(0) if found else text
