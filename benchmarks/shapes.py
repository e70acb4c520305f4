"""The shapes of all benchmarks: one table, in the package, because `fastprobe bench` prints it from an installation too."""

from fastprobe.kernels.bench import SHAPES, Shape

__all__ = ["SHAPES", "Shape"]
