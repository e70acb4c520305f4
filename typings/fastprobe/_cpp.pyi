"""What csrc/bindings.cpp exports; a stub beside the package, since the extension is compiled."""

import numpy as np

def supported_isas() -> list[str]: ...
def compiled_isas() -> list[str]: ...
def bf16_isa() -> str | None: ...
def max_threads() -> int: ...
def train(
    *,
    text: np.ndarray,
    audio: np.ndarray,
    centroids: np.ndarray | None,
    train_classes: np.ndarray,
    clips: np.ndarray | None,
    rows: int,
    queries: np.ndarray,
    order: np.ndarray,
    unseen: int,
    truth: np.ndarray,
    permutations: np.ndarray,
    text_start: np.ndarray,
    audio_start: np.ndarray,
    rates: np.ndarray,
    optimizer: str,
    temperature: float,
    momentum: float,
    weight_decay: float,
    symmetric: bool,
    neighbours: int,
    loss: np.ndarray,
    ranks: np.ndarray,
    unseen_ranks: np.ndarray,
    text_heads: np.ndarray | None,
    audio_heads: np.ndarray | None,
    isa: str,
    threads: int = 0,
    algebra: str = "auto",
) -> None: ...
def exp(x: np.ndarray, out: np.ndarray, isa: str) -> None: ...
def gathered_ranks(
    *,
    left: np.ndarray,
    left_of: np.ndarray,
    right: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    truth: np.ndarray,
    unseen: int,
    neighbours: int,
    ranks: np.ndarray,
    unseen_ranks: np.ndarray,
    isa: str,
    threads: int = 0,
) -> None: ...
def gathered_sums(
    *, weight: np.ndarray, gram: np.ndarray, index: np.ndarray, lower: bool, out: np.ndarray, isa: str, threads: int = 0
) -> None: ...
