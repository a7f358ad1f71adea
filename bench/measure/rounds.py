"""Interleaved rounds: what is compared is measured one after the other, again and again."""

import sys
import time


def interleaved(points, names, rounds, measure, level):
    """In each round, every point with every contestant; another one begins each time.

    Machines drift by factors within minutes, so only numbers of one round and point are
    comparable. `measure(name, point)` returns a dictionary.
    """
    records = []
    total, done, start = rounds * len(points) * len(names), 0, time.monotonic()
    for number in range(rounds):
        for point in points:
            first = (number + points.index(point)) % len(names)
            for name in names[first:] + names[:first]:
                record = {"level": level, "round": number, "point": point.name, "contestant": name}
                try:
                    record.update(measure(name, point))
                except (RuntimeError, OSError, ValueError) as error:
                    record["failed"] = str(error)
                    print(f"bench: {level}, {point.name}, {name}: {error}", file=sys.stderr)
                records.append(record)
                done += 1
                progress(level, done, total, start)
    return records


def progress(level, done, total, start):
    if not sys.stderr.isatty() and done % max(1, total // 10) != 0:
        return
    left = (time.monotonic() - start) / done * (total - done)
    end = "\r" if sys.stderr.isatty() and done < total else "\n"
    print(f"bench: {level}: {done} of {total}, about {left:.0f} s left ", end=end, file=sys.stderr, flush=True)
