"""What becomes of a file of the newest checkpoint while no coordinator looks."""

from __future__ import annotations

from pathlib import Path

from tests.faults.simulation.plan import Fault, Moment


def damage(folder: Path, fault: Fault) -> str:
    """Flips a bit, cuts the end off, or removes a file; says what, or nothing where there is no checkpoint."""
    steps = [entry for entry in folder.iterdir() if entry.name.split("-")[0].isdigit() and not entry.suffix]
    if not steps:
        return ""
    newest = max(steps, key=lambda entry: int(entry.name.split("-")[0]))
    files = sorted(newest.iterdir())
    path = files[fault.rank % len(files)]
    content = bytearray(path.read_bytes())
    if fault.moment == Moment.BEFORE:
        path.unlink()
        return f"{newest.name}/{path.name} is gone"
    if fault.moment == Moment.AFTER:
        path.write_bytes(content[: len(content) // 2])
        return f"{newest.name}/{path.name} is cut off"
    place = int(fault.part * len(content))
    content[place] ^= 1
    path.write_bytes(content)
    return f"a bit of byte {place} of {newest.name}/{path.name} is flipped"
