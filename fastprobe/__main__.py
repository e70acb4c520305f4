"""`python -m fastprobe`."""

from .cli import main

main()
