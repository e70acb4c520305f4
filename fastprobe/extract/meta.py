"""What every table says of its making: versions and date."""

from __future__ import annotations

from datetime import datetime, timezone
from importlib import metadata
from typing import Any


def origin(*packages: str) -> dict[str, Any]:
    """Versions of the packages that are installed, of fastprobe, and the date (UTC)."""
    versions = {}
    for name in ("fastprobe", *packages):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "created": datetime.now(timezone.utc).isoformat(timespec="seconds")}
