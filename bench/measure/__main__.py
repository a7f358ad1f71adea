"""The command line of scripts/bench."""

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile

from . import machine, native, report, scaling
from .contestants import DEVICES
from .points import POINTS, QUICK

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures this project's devices and servers beside their peers, in interleaved\n"
        "rounds, and writes ratios with their spread to docs/performance/tables.md.",
        epilog="examples:\n  scripts/bench --quick\n  scripts/bench --level device --points 'read 4k' --rounds 7\n"
        "  scripts/bench --level server --client fio --only 'mem|limit memory'\n"
        "  scripts/bench --scaling --quick\n  scripts/bench --report target/bench/last.json\n\n"
        "A point is named like 'read 4k 16': 4 KiB reads at random places, 16 in flight. Raw numbers\n"
        "are kept below target/bench. Exit status: 0 done, 1 failed, 2 wrong usage.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a sensible table in about five minutes")
    add("--scaling", action="store_true", help="how cost grows: requests in flight, connections, lanes, devices, sizes")
    add("--level", action="append", choices=["device", "server"], help="only this level (default both)")
    add("--points", metavar="REGEX", help="only points whose names match")
    add("--only", metavar="REGEX", help="only contestants whose names match, among them those on request")
    add("--rounds", type=int, metavar="N", help="rounds (default 5; 3 with --quick)")
    add("--seconds", type=float, metavar="S", help="time for one number (default 2; with --quick 1 or less)")
    add("--size", type=int, metavar="MIB", help="size of each device (default 128; 32 with --quick)")
    add("--transport", action="append", choices=["unix", "tcp"], help="default both; unix with --quick")
    add("--client", choices=["own", "sleeping", "fio", "nbdcopy"], default="own",
        help="who asks the servers; sleeping is our own, which sleeps while it waits (default own)")
    add("--lanes", type=int, metavar="N", help="lanes or connections of each device (default: one each)")
    add("--disk", metavar="DIR", default=os.path.join(ROOT, "target", "bench"),
        help="where points that want a disk find one (default target/bench)")
    add("--kernel", metavar="NAME", default="uml",
        help="kernel of the device level's virtual machine, as scripts/vm takes it (default uml); "
        "the stock ones from 6.12 on also have ublk")
    add("--native", action="store_true", help="use this machine's own nbd driver, not the virtual machine (root)")
    add("--report", metavar="FILE", nargs="+",
        help="measure nothing: write the report of these raw numbers; those of several runs are put together")
    add("--output", metavar="FILE", default=os.path.join(ROOT, "docs", "performance", "tables.md"),
        help="file whose measured part is written anew (default docs/performance/tables.md)")
    add("--check", action="store_true", help="see that everybody can be measured; writes nothing, tells nothing of speed")
    add("--list", action="store_true", help="names of points and contestants")
    return parser, parser.parse_args()


def matching(names, pattern, parser):
    try:
        found = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        parser.error(f"{pattern}: {error}")
    if not found:
        parser.error(f"nothing is called {pattern}; see scripts/bench --list")
    return found


def devices(plan, native_driver, kernel):
    """Runs the device level where there is a driver."""
    with tempfile.TemporaryDirectory(prefix="nbd-bench-", dir="/tmp") as shared:
        plan_path, result_path = os.path.join(shared, "plan.json"), os.path.join(shared, "result.json")
        with open(plan_path, "w") as file:
            json.dump(plan, file)
        command = ["python3", "-m", "measure.inside", plan_path, result_path]
        variables = {"PYTHONPATH": os.path.dirname(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
        if native_driver:
            done = subprocess.run(command, env={**os.environ, **variables})
        else:
            steps = 20 if plan["scaling"] else len(plan["points"])
            expected = plan["rounds"] * steps * len(plan["contestants"]) * (plan["seconds"] + 3)
            machine_command = [os.path.join(ROOT, "scripts", "vm"), "--kernel", kernel, "-m", "4G", "-t", str(int(expected * 3 + 600)),
                               "--nbds-max", str(scaling.MOST_DEVICES)]
            machine_command += ["--share", shared]
            for name, value in variables.items():
                machine_command += ["-e", f"{name}={value}"]
            done = subprocess.run([*machine_command, "--", *command])
        if not os.path.exists(result_path):
            raise RuntimeError(f"the device level failed (status {done.returncode})")
        with open(result_path) as file:
            return json.load(file)


def measure(options, parser):
    if options.scaling and options.points:
        parser.error("--points has no meaning with --scaling, which has points of its own")
    levels = options.level or ["device", "server"]
    names = [point.name for point in POINTS]
    names = matching(names, options.points, parser) if options.points else names
    if options.quick:
        names = [name for name in names if name in QUICK]
    points = [point for point in POINTS if point.name in names]
    if not points:
        parser.error("no point is left: --quick has only " + ", ".join(QUICK))
    only = options.only or "."
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    binaries = os.environ.get("NBD_BIN_DIR", os.path.join(target, "release"))
    plan = {
        "binaries": os.path.abspath(binaries),
        "rounds": options.rounds or (3 if options.quick else 5),
        "seconds": options.seconds or (0.5 if options.quick else 2),
        "size": (options.size or (32 if options.quick else 128)) << 20,
        "disk": options.disk,
        "transports": options.transport or (["unix"] if options.quick else ["unix", "tcp"]),
        "client": options.client,
        "lanes": options.lanes,
        "scaling": options.scaling,
        "kernel": options.kernel,
        "device_level": "device" if options.kernel == "uml" else f"device, kernel {options.kernel}",
        "servers": [c.name for c in native.SERVERS if re.search(only, c.name)] if options.only else [],
    }
    records = []
    if "server" in levels:
        records += scaling.servers(plan) if options.scaling else native.measure(plan, points)
    if "device" in levels:
        contestants = [c.name for c in DEVICES if re.search(only, c.name)]
        there = {**plan, "points": [p.name for p in points if p.storage == "ram"], "contestants": contestants}
        if contestants and there["points"]:
            records += devices(there, options.native, options.kernel)
    return {"plan": plan, "records": records}


def check(options, parser):
    """Measures a little of everybody, and tells whether that can be reported."""
    if options.scaling or options.report:
        parser.error("--check measures a few points and reports none: leave out --scaling and --report")
    options.points = options.points or "^(read 4k 1|seq read 128k|write[+]flush 4k|trim 64k 1)$"
    options.rounds, options.seconds, options.size = options.rounds or 1, options.seconds or 0.05, options.size or 8
    raw = {"date": "now", "command": "scripts/bench --check", "machine": machine.facts(ROOT), **measure(options, parser)}
    failed = [record for record in raw["records"] if "failed" in record or record["errors"]]
    for record in failed:
        print("bench: {level}, {point}, {contestant}: ".format(**record)
              + record.get("failed", "answered with errors"), file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="nbd-bench-", dir="/tmp") as folder:
        report.write(raw, os.path.join(folder, "tables.md"))
    print(f"bench: {len(raw['records'])} measurements, {len(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


def raw_numbers(path):
    with open(path) as file:
        try:
            run = json.load(file)
        except ValueError:
            run = None
    if not isinstance(run, dict) or not {"date", "command", "machine", "plan", "records"} <= run.keys():
        raise ValueError(f"{path}: not the raw numbers of a run; those are kept in target/bench")
    return run


def together(paths):
    """The raw numbers of runs that measured different things."""
    runs = [raw_numbers(path) for path in paths]

    def both(words, between=" and "):
        return between.join(dict.fromkeys(str(word) for word in words))

    if len({run["plan"]["scaling"] for run in runs}) > 1:
        raise ValueError("--report: these runs are of different kinds, with and without --scaling")
    measured = [{record["level"] for record in run["records"]} for run in runs]
    if sum(map(len, measured)) > len(set().union(*measured)):
        raise ValueError("--report: these runs measured the same; numbers of two runs are not comparable")
    return {
        **runs[-1],
        "date": both(run["date"] for run in runs),
        "command": both((run["command"] for run in runs), "` and `"),
        "machine": {key: both(run["machine"][key] for run in runs) for key in runs[-1]["machine"]},
        "records": [record for run in runs for record in run["records"]],
    }


def main():
    parser, options = arguments()
    if options.list:
        print("points:", *(f"  {point.name}" for point in POINTS), sep="\n")
        print("servers:", *(f"  {c.name}" for c in native.SERVERS), sep="\n")
        print("devices:", *(f"  {c.name}" for c in DEVICES), sep="\n")
        return 0
    if options.check:
        return check(options, parser)
    if options.report:
        raw = together(options.report)
    else:
        raw = {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
               "command": " ".join(["scripts/bench", *sys.argv[1:]])}
        raw["machine"] = machine.facts(ROOT)
        raw.update(measure(options, parser))
        raw["machine"]["load at the end"] = machine.load()
        folder = os.path.join(ROOT, "target", "bench")
        os.makedirs(folder, exist_ok=True)
        for name in (raw["date"].replace(" ", "-").replace(":", "") + ".json", "last.json"):
            with open(os.path.join(folder, name), "w") as file:
                json.dump(raw, file, indent=1)
        print(f"bench: raw numbers: {os.path.join(folder, 'last.json')}", file=sys.stderr)
    report.write(raw, options.output)
    print(f"bench: written to {options.output}", file=sys.stderr)
    return 0


def end(number, _frame):
    """Whatever was started is ended on the way out."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (RuntimeError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
