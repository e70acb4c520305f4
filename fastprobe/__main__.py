"""`python -m fastprobe`."""

from .cli.app import main

main()
