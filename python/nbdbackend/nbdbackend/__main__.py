"""Serves the backend of a script: ``python3 -m nbdbackend [OPTIONS] script.py [ARGUMENT]...``

The script sets ``backend`` to an instance of nbdbackend.Backend.
"""

import argparse
import logging
import os
import runpy
import sys

from . import Backend, serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m nbdbackend", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--join", metavar="DEVICE", help="serve a device that waits, like nbd0")
    which.add_argument("--replay", metavar="FILE", help="replay a recording of nbd-ctl record")
    parser.add_argument("--takeover", action="store_true", help="kill a backend that serves it")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(levelname)s: %(message)s")
    sys.argv = [given.script, *given.arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(given.script)))
    backend = runpy.run_path(given.script, run_name="__nbdbackend__").get("backend")
    if not isinstance(backend, Backend):
        print(f"{given.script}: sets no `backend` to a nbdbackend.Backend", file=sys.stderr)
        return 2
    try:
        serve(backend, device=given.join, replay=given.replay, takeover=given.takeover)
    except OSError as error:
        print(f"{given.script}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # The library's threads still serve: nothing may be torn down under them.
        sys.stderr.flush()
        os._exit(130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
