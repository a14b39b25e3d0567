"""What the command `metarl` starts, and `python -m metarl`."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line; an interrupt while it is imported, which takes a second, ends it without a traceback."""
    try:
        from metarl.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("metarl: stopped by SIGINT", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if not sys.flags.safe_path:  # metarl.registry searches the working directory for code that the user names, no more
        del sys.path[0]
    sys.exit(main())
