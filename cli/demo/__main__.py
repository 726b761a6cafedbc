"""`python -m cli.demo`: the demo alone."""

from __future__ import annotations

import typer

from cli.demo.entry import command

if __name__ == "__main__":
    typer.run(command)
