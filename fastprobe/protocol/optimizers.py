"""The optimisers: what each one is, in one record that the shell, the reports and the backends read.

To add one: a record here, its update in `kernels.reference` and in the backends that are to honour it (each declares
its optimisers in `kernels.BACKENDS`, and refuses the others by name), and a test.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """What is known of an optimiser.

    Attributes
    ----------
    name : str
    default_lr : float
        The step size that did best on real tables.
    rotation_invariant : bool
        Whether its update commutes with rotations of the inputs, so that training in the compressed basis equals
        training on the raw vectors. If not, ``basis="raw"`` is the default.
    second_moment : {"none", "head", "entry"}
        What it keeps beside the momentum: nothing, a number per head, or one per weight.
    help : str
        Words for the shell.
    methods : str
        Words for the methods paragraph; ``{momentum}`` is filled in.
    """

    name: str
    default_lr: float
    rotation_invariant: bool
    second_moment: str
    help: str
    methods: str


OPTIMIZERS: dict[str, Optimizer] = {
    o.name: o
    for o in (
        Optimizer(
            "adam-mini",
            1.0,
            True,
            "head",
            "same result in the compressed basis",
            "Adam with one second moment per head (Adam-mini; Zhang et al. 2024)",
        ),
        Optimizer("sgd", 3.0, True, "none", "same result in the compressed basis", "SGD with momentum {momentum:g}"),
        Optimizer("adam", 3e-3, False, "entry", "trains on raw vectors", "Adam (Kingma & Ba 2015)"),
    )
}
