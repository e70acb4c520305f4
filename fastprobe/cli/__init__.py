"""The shell's commands. They parse arguments and call the library."""

from .app import app, main

__all__ = ["app", "main"]
