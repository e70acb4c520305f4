"""Scripts that lie outside the package, as modules."""

import importlib.util


def load_script(path):
    """The module of a script; its folder is not put on the path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
