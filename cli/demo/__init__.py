"""`allotment demo`: the main job on real input, with an audit at the end that can fail.

A run has servers, a scratch database and a key space of its own, one real worker process, and a
ledger of every answer that the callers were given. The audit compares the ledger with PostgreSQL.
"""

from __future__ import annotations

from cli.demo.entry import command

__all__ = ["command"]
