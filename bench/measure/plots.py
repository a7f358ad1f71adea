"""Pictures of ratios, as SVG. Without matplotlib there are none."""

import os
from statistics import median


def _pyplot():
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("svg")
    # The same numbers make the same file.
    matplotlib.rcParams["svg.hashsalt"] = "nbd"
    from matplotlib import pyplot
    return pyplot


def ratios(numbers, level, folder, roles):
    """Requests a second, ours by theirs; returns the picture's path relative to the report."""
    pyplot = _pyplot()
    ours = numbers.with_role("ours")
    if pyplot is None or not ours:
        return None
    figure, axes = pyplot.subplots(len(ours), 1, figsize=(9, 2.6 * len(ours)), squeeze=False)
    for axis, name in zip(axes[:, 0], ours):
        others = [n for n in numbers.names if n != name and roles[n][1] == roles[name][1] and roles[n][0] != "ours"]
        points = [p for p in numbers.points if numbers.of(p, name, "iops")]
        width = 0.8 / max(1, len(others))
        for index, other in enumerate(others):
            values = [numbers.ratios(p, name, other) for p in points]
            places = [n + index * width for n, v in enumerate(values) if v]
            values = [v for v in values if v]
            middles = [median(v) for v in values]
            errors = [[m - min(v) for m, v in zip(middles, values)], [max(v) - m for m, v in zip(middles, values)]]
            axis.bar(places, middles, width, yerr=errors, label=other, error_kw={"linewidth": 0.8})
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks([n + 0.4 - width / 2 for n in range(len(points))], points, rotation=20, ha="right", fontsize=7)
        axis.set_ylabel(f"{name}\nby others", fontsize=8)
        axis.legend(fontsize=7)
    return _save(pyplot, figure, folder, level)


def growth(numbers, level, folder):
    """Requests a second, processor time and memory along an axis."""
    pyplot = _pyplot()
    if pyplot is None or not numbers.points:
        return None
    kinds = (("kIOPS", lambda p, n: numbers.of(p, n, "iops"), 1e-3),
             ("CPU µs/request", lambda p, n: numbers.each(p, n, "cpu_s"), 1e6),
             ("resident MiB", lambda p, n: numbers.of(p, n, "resident_kib"), 1 / 1024))
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(12, 3.4))
    for axis, (label, values, scale) in zip(axes, kinds):
        for name in numbers.names:
            found = [(place, median(v) * scale) for place, p in enumerate(numbers.points) if (v := values(p, name))]
            axis.plot(*zip(*found), marker="o", markersize=3, linewidth=1, label=name)
        axis.set_xticks(range(len(numbers.points)), numbers.points, fontsize=7)
        axis.set_title(label, fontsize=8)
        axis.set_yscale("log")
    axes[0].legend(fontsize=6)
    return _save(pyplot, figure, folder, level)


def _save(pyplot, figure, folder, name):
    os.makedirs(folder, exist_ok=True)
    file = "".join(letter if letter.isalnum() else "-" for letter in name) + ".svg"
    figure.tight_layout()
    figure.savefig(os.path.join(folder, file), metadata={"Date": None})
    pyplot.close(figure)
    return f"{os.path.basename(folder)}/{file}"
