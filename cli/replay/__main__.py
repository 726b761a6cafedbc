"""`python -m cli.replay FILE…`: the command by itself."""

from __future__ import annotations

import typer

from cli.replay import command

typer.run(command)
