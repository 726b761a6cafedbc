"""`python -m cli.replay FILE…`: the command by itself."""

from __future__ import annotations

import sys

from cli.main import run

sys.exit(run(["replay", *sys.argv[1:]]))
