"""An environment that has only what `pip install fastprobe` brings, made from one that has more.

The packages that the requirements without extras lead to are found in the installed metadata; every other package is hidden
from a new process: from `import`, from `importlib.util.find_spec` and from `importlib.metadata`.
"""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

# Read by every Python process before anything else. Finders are wrapped, so that a hidden package is not there for anybody.
SITECUSTOMIZE = """
import json, os, re, sys

_modules, _packages = (set(names) for names in json.loads(os.environ["CORE_ONLY_HIDDEN"]))

def _key(name):
    return re.sub("[-_.]+", "-", name).lower()

class _Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in _modules else self.finder.find_spec(name, path, target)
    def find_distributions(self, *given, **named):
        found = getattr(self.finder, "find_distributions", lambda *a, **k: ())(*given, **named)
        return [d for d in found if _key(d.metadata["Name"]) not in _packages]
    def invalidate_caches(self):
        getattr(self.finder, "invalidate_caches", lambda: None)()

sys.meta_path[:] = [_Without(finder) for finder in sys.meta_path]
"""


def key(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub("[-_.]+", "-", name).lower()


def core_packages() -> set[str]:
    """fastprobe and all that its requirements without an extra lead to."""
    found: set[str] = set()
    waiting = ["fastprobe"]
    while waiting:
        name = key(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for line in metadata.distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def hidden() -> tuple[list[str], list[str]]:
    """Modules and packages that are installed here and do not belong to the core."""
    core = core_packages()
    modules = [m for m, owners in metadata.packages_distributions().items() if not {key(o) for o in owners} & core]
    packages = {key(d.metadata["Name"]) for d in metadata.distributions()} - core
    return sorted(modules), sorted(packages)


def core_environment(folder: Path) -> dict[str, str]:
    """Environment variables for a process that is to see the core only; `folder` takes a file of this."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "CORE_ONLY_HIDDEN": json.dumps(hidden())}
