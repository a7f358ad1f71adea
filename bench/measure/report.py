"""From raw numbers to docs/performance/tables.md: ratios inside rounds, and what was to be reached."""

import os
from statistics import median

from . import plots
from .contestants import DEVICES, SERVERS
from .scaling import IDLE_SECONDS

BEGIN = "<!-- measured: begin, written by scripts/bench{} -->"
END = "<!-- measured: end{} -->"
ROLES = {c.name: (c.role, c.family) for c in (*SERVERS, *DEVICES)}

# What the issue asks of the server level over a unix socket, against the best peer of the point.
SERVER_TARGETS = {"read 4k 1": 2.0, "read 4k 16": 1.6, "write 4k 1": 1.2, "write 4k 16": 1.2,
                  "seq read 128k": 1.8, "seq read 1m": 1.8, "seq write 128k": 1.3, "seq write 1m": 1.3,
                  "write+flush 4k": 1.0}
DEVICE_TARGETS = {"read 4k 1": 1.3, "read 4k 16": 1.5, "write 4k 1": 1.3, "write 4k 16": 1.5,
                  "seq read 64k": 1.2, "seq read 128k": 1.2, "seq read 1m": 1.2,
                  "seq write 64k": 1.2, "seq write 128k": 1.2, "seq write 1m": 1.2}
LIMIT_TARGET = 0.9
# ublk moves requests in shared rings and no data through sockets.
UBLK_TARGETS = {"read 4k 1": 1.0, "read 4k 16": 1.0, "read 4k 64": 1.0, "write 4k 1": 1.0, "write 4k 16": 1.0,
                "seq read 128k": 0.7, "seq write 128k": 0.7}


class Numbers:
    """The records of one level."""

    def __init__(self, records):
        self.good = [r for r in records if "failed" not in r and not r["errors"]]
        self.table = {(r["point"], r["contestant"], r["round"]): r for r in self.good}
        names = {r["contestant"] for r in self.good}
        self.names = [name for name in dict.fromkeys(r["contestant"] for r in records) if name in names]
        # Each point comes as often as there are rounds, always in the same order.
        self.points = list(dict.fromkeys(r["point"] for r in self.good))
        self.rounds = sorted({r["round"] for r in self.good})

    def of(self, point, name, field):
        """One value a round."""
        rows = (self.table.get((point, name, number)) for number in self.rounds)
        return [row[field] for row in rows if row and row.get(field) is not None]

    def each(self, point, name, field):
        """One value a round, for each request."""
        rows = (self.table.get((point, name, number)) for number in self.rounds)
        return [row[field] / row["requests"] for row in rows if row and row.get(field) is not None and row["requests"]]

    def ratios(self, point, ours, other):
        """Ours by theirs, inside each round."""
        pairs = ((self.table.get((point, ours, n)), self.table.get((point, other, n))) for n in self.rounds)
        return [a["iops"] / b["iops"] for a, b in pairs if a and b and b["iops"]]

    def with_role(self, role, family=None):
        return [n for n in self.names if ROLES[n][0] == role and family in (None, ROLES[n][1])]


def spread(values, digits=2):
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"**{median(values):.{digits}f}** ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def ratio_tables(numbers):
    """For each of ours: how many times as fast as each other one of its family."""
    lines = []
    for ours in numbers.with_role("ours"):
        family = ROLES[ours][1]
        others = [name for role in ("peer", "ublk", "limit") for name in numbers.with_role(role, family)]
        if not others:
            continue
        rows = []
        for point in numbers.points:
            if numbers.of(point, ours, "iops"):
                rows.append([point] + [spread(numbers.ratios(point, ours, other)) for other in others])
        lines += ["", f"**{ours}**, times as many requests a second as", ""]
        lines += table(["point", *others], rows)
    return lines


def verdicts(numbers, targets):
    """Each target, against the best peer of the point and against the limit."""
    rows = []
    for point in numbers.points:
        for ours in numbers.with_role("ours"):
            family = ROLES[ours][1]
            peers = numbers.with_role("peer", family)
            against = [(median(numbers.ratios(point, ours, peer)), peer) for peer in peers if numbers.ratios(point, ours, peer)]
            if against and point in targets:
                # The best peer is the one against which we do worst.
                value, peer = min(against)
                rows.append(verdict(ours, point, f"best peer: {peer}", targets[point], value))
            for other in numbers.with_role("ublk", family):
                ratios = numbers.ratios(point, ours, other)
                if ratios and point in UBLK_TARGETS:
                    rows.append(verdict(ours, point, other, UBLK_TARGETS[point], median(ratios)))
            for limit in numbers.with_role("limit", family):
                ratios = numbers.ratios(point, ours, limit)
                if ratios:
                    rows.append(verdict(ours, point, limit, LIMIT_TARGET, median(ratios)))
    if not rows:
        return []
    return ["", *table(["ours", "point", "against", "to reach", "median", ""], rows)]


def verdict(ours, point, against, target, value):
    return [ours, point, against, f"{target:.1f}", f"{value:.2f}", "reached" if value >= target else "**missed**"]


def absolute(numbers):
    """What this run saw on this machine. Not comparable with any other run."""
    rows = []
    for point in numbers.points:
        for name in numbers.names:
            iops = numbers.of(point, name, "iops")
            if not iops:
                continue
            def m(field, digits=1, numbers=numbers, point=point, name=name):
                values = numbers.of(point, name, field)
                return f"{median(values):.{digits}f}" if values else "–"
            def each(field, scale, digits, numbers=numbers, point=point, name=name):
                values = numbers.each(point, name, field)
                return f"{median(values) * scale:.{digits}f}" if values else "–"
            data = numbers.of(point, name, "mb_per_second")
            cpu = numbers.of(point, name, "cpu_s")
            gib = "–"
            if cpu and median(data) > 0:
                seconds = median(numbers.of(point, name, "seconds"))
                gib = f"{median(cpu) / (median(data) * seconds / 1073.741824):.2f}"
            resident = numbers.of(point, name, "resident_kib")
            rows.append([point, name, f"{median(iops) / 1000:.2f}", f"{median(data):.0f}", m("median_us"), m("p99_us"),
                         m("p999_us"), each("cpu_s", 1e6, 2), gib, each("switches", 1, 2), each("system_calls", 1, 2),
                         f"{median(resident) / 1024:.1f}" if resident else "–"])
    head = ["point", "who", "kIOPS", "MB/s", "median µs", "p99", "p99.9", "CPU µs/request", "CPU s/GiB",
            "switches/request", "system calls/request", "resident MiB"]
    return ["", "<details><summary>Numbers of this run (medians; comparable only with each other)</summary>", "",
            *table(head, rows), "", "</details>"]


def costs(numbers):
    """Processor time of the server for a request, against the best peer's."""
    rows = []
    for point in numbers.points:
        for ours in numbers.with_role("ours"):
            own = numbers.each(point, ours, "cpu_s")
            peers = [(median(numbers.each(point, peer, "cpu_s")), peer)
                     for peer in numbers.with_role("peer", ROLES[ours][1]) if numbers.each(point, peer, "cpu_s")]
            if own and peers and min(peers)[0] > 0:
                value = median(own) / min(peers)[0]
                rows.append([ours, point, min(peers)[1], f"{value:.2f}", "reached" if value <= 0.5 else "**missed**"])
    if not rows:
        return []
    return ["", "Processor time of the server for a request, by that of the thriftiest peer (to reach: 0.5):", "",
            *table(["ours", "point", "peer", "ratio", ""], rows)]


def growth(numbers):
    """How each contestant does at each step of an axis. Ratios say more than numbers."""
    rows = []
    fields = (("kIOPS", "iops", 1e-3, 1), ("resident MiB", "resident_kib", 1 / 1024, 1),
              ("µs of processor time while idle, a second", "idle_cpu_s", 1e6 / IDLE_SECONDS, 0),
              ("ms to attach, each", "attach_s", 1e3, 0))
    for name in numbers.names:
        for label, field, scale, digits in fields:
            values = [numbers.of(point, name, field) for point in numbers.points]
            if any(values):
                rows.append([name, label, *(f"{median(v) * scale:.{digits}f}" if v else "–" for v in values)])
        each = [numbers.each(point, name, "cpu_s") for point in numbers.points]
        if any(each):
            rows.append([name, "CPU µs/request", *(f"{median(v) * 1e6:.1f}" if v else "–" for v in each)])
    return ["", *table(["who", "", *numbers.points], rows)]


def render_scaling(raw, folder):
    lines = heading(raw)
    for level in dict.fromkeys(record["level"] for record in raw["records"]):
        numbers = Numbers([r for r in raw["records"] if r["level"] == level])
        lines += [f"### {level[0].upper()}{level[1:]} ({number_of_rounds(numbers)}, medians)"]
        picture = plots.growth(numbers, level, folder)
        if picture:
            lines += ["", f"![{level}]({picture})"]
        lines += [*growth(numbers), ""]
    return lines


def number_of_rounds(numbers):
    count = len(numbers.rounds)
    return f"{count} round" + "s" * (count != 1)


def heading(raw):
    machine = ", ".join(f"{key}: {value}" for key, value in raw["machine"].items())
    lines = ["", f"Measured {raw['date']} with `{raw['command']}`.", "", f"Machine: {machine}.", ""]
    failed = [r for r in raw["records"] if "failed" in r or r.get("errors")]
    if failed:
        lines += [f"{len(failed)} of {len(raw['records'])} measurements failed; the raw numbers say why.", ""]
    return lines


def render(raw, folder):
    lines = heading(raw)
    for level in dict.fromkeys(record["level"] for record in raw["records"]):
        numbers = Numbers([r for r in raw["records"] if r["level"] == level])
        of_device = level.startswith("device")
        where = "in the virtual machine, fio" if of_device else "on this machine"
        lines += [f"### {level[0].upper()}{level[1:]} ({where}, {number_of_rounds(numbers)})"]
        picture = plots.ratios(numbers, level, folder, ROLES)
        if picture:
            lines += ["", f"![ratios, {level}]({picture})"]
        lines += ratio_tables(numbers)
        lines += verdicts(numbers, DEVICE_TARGETS if of_device else SERVER_TARGETS)
        lines += costs(numbers)
        lines += absolute(numbers)
        lines += [""]
    return lines


def write(raw, path):
    """Replaces the measured part of a file, and leaves what people wrote there."""
    scaling, kernel = raw["plan"].get("scaling", False), raw["plan"].get("kernel", "uml")
    part = (" --scaling" if scaling else "") + (f" --kernel {kernel}" if kernel != "uml" else "")
    begin, end = (marker.format(part) for marker in (BEGIN, END))
    try:
        with open(path) as file:
            before, _, rest = file.read().partition(begin)
            after = rest.partition(end)[2]
    except FileNotFoundError:
        before, after = "# Performance: all tables\n\n", "\n"
    folder = os.path.splitext(os.path.abspath(path))[0]
    lines = (render_scaling if scaling else render)(raw, folder)
    text = before + "\n".join([begin, *lines, end]) + after
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)
