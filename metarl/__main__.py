"""The entry point of the command `metarl` and of `python -m metarl`."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line. Ctrl-C during its import, which takes a second, ends it without a traceback."""
    try:
        from metarl.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("metarl: stopped by SIGINT", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if not sys.flags.safe_path:  # only metarl.runs.registry searches the working directory
        del sys.path[0]
    sys.exit(main())
