"""The points at which everybody is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    name: str
    pattern: str
    block: int = 4096
    depth: int = 1
    jobs: int = 1
    # ram: in a file system of memory; disk: where the disk decides; cold: the same, not cached;
    # sparse: a file without any data.
    storage: str = "ram"

    @property
    def is_sequential(self):
        return self.pattern in ("read", "write")

    @property
    def empties(self):
        """Whether it leaves holes, which the next one must not find: they are read in another way."""
        return self.pattern == "trim"


def _random():
    for what, pattern in (("read", "randread"), ("write", "randwrite"), ("mix", "randrw")):
        for jobs in (1, 4):
            for depth in (1, 4, 16, 64):
                suffix = f" x{jobs}" if jobs > 1 else ""
                yield Point(f"{what} 4k {depth}{suffix}", pattern, 4096, depth, jobs)


def _sequential():
    for what in ("read", "write"):
        for name, block in (("64k", 64 << 10), ("128k", 128 << 10), ("1m", 1 << 20)):
            yield Point(f"seq {what} {name}", what, block, 4)


POINTS = [
    *_random(),
    *_sequential(),
    Point("write+flush 4k", "fsync", 4096, 1, 1, "disk"),
    Point("cold read 4k 1", "randread", 4096, 1, 1, "cold"),
    Point("cold read 4k 16", "randread", 4096, 16, 1, "cold"),
    Point("sparse read 4k 16", "randread", 4096, 16, 1, "sparse"),
    Point("trim 64k 1", "trim", 64 << 10, 1),
]

QUICK = (
    "read 4k 1",
    "read 4k 16",
    "write 4k 1",
    "write 4k 16",
    "seq read 128k",
    "seq write 128k",
    "write+flush 4k",
)
