"""Finding the processes of one demo, however they came into being."""

from __future__ import annotations

from pathlib import Path

__all__ = ["processes_of"]


def processes_of(folder: Path) -> list[int]:
    """Return every living process whose environment names this demo's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"DEMO_VAR={folder}\0".encode() in variables + b"\0":
            found.append(int(entry.name))
    return found
