"""`python -m td_compiler.weights CHECKPOINT...`: trained networks of the experiments become the zoo's."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from td_compiler.errors import ConversionError
from td_compiler.weights import publish


def main() -> int:
    """Publish the folders that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m td_compiler.weights", description=(publish.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("checkpoint", nargs="+", help="a folder of OUT/checkpoints")
    parser.add_argument("--to", help="the folder to write into; by default the package's, for files below 1 MB")
    parser.add_argument("--facts", metavar="FILE.json", help="more for the card, such as accuracy with its interval")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    given = parser.parse_args()
    try:
        facts = json.loads(Path(given.facts).read_text(encoding="utf-8")) if given.facts else None
        for checkpoint in given.checkpoint:
            print(f"wrote {publish(checkpoint, given.to, facts, force=given.force)} and its card")
    except (ConversionError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
