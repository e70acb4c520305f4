"""The definition: float64, one probe at a time, as short as the equations of the protocol.

    a_c = norm(W' t_pi(c))     b_i = norm(V' x_i)     s(c, i) = <a_c, b_i>     norm(z) = z / max(|z|, eps)
    L = 1/n sum_i [ -s(y_i, i)/tau + log sum_{c in train} exp(s(c, i)/tau) ]

`ranking` has what scores become. Every other backend is tested against this one.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from ..protocol.config import ProbeConfig
from .batch import BatchResult, ProbeBatch, check_cpu
from .ranking import csls_scores, ranks_of

EPS = 1e-12
BETA1, BETA2_MINI, BETA2_ADAM, EPS_ADAM = 0.9, 0.99, 0.999, 1e-8


def norm(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows divided by their lengths, and the lengths (n, 1)."""
    length = np.maximum(np.linalg.norm(z, axis=1, keepdims=True), EPS)
    return z / length, length


def loss_and_gradient(w, v, t, x, y, temperature, symmetric):
    """Loss of one step and its gradient with respect to both heads.

        G = (P - Y) / (n tau)     dB = G A     dA = G' B     dz = (da - a <a, da>) / |z|     dW = T' dZ_a

    With `symmetric` the mean with the text-to-sound direction is taken: for each row i the softmax runs
    over the n sounds, seen from text y_i,  -s(y_i, i)/tau + log sum_j exp(s(y_i, j)/tau).

    Parameters
    ----------
    w, v : float64 (r_text, d), (r_audio, d)
    t, x : float64 (m, r_text), (n, r_audio)
    y : int64 (n,)
        Row of `t` that belongs to each row of `x`.
    """
    n = len(x)
    (a, a_len), (b, b_len) = norm(t @ w), norm(x @ v)
    s = b @ a.T / temperature
    rows = np.arange(n)
    onehot = np.zeros_like(s)
    onehot[rows, y] = 1.0
    lse = logsumexp(s, axis=1)
    loss = np.mean(lse - s[rows, y])
    g = np.exp(s - lse[:, None]) - onehot
    if symmetric:
        lse_text = logsumexp(s, axis=0)
        loss = 0.5 * (loss + np.mean(lse_text[y] - s[rows, y]))
        g = 0.5 * (g + onehot.sum(axis=0) * np.exp(s - lse_text) - onehot)
    g /= n * temperature
    da, db = g.T @ b, g @ a
    dza = (da - a * np.sum(a * da, axis=1, keepdims=True)) / a_len
    dzb = (db - b * np.sum(b * db, axis=1, keepdims=True)) / b_len
    return loss, t.T @ dza, x.T @ dzb


class Optimizer:
    """State of one head, and its update: adam-mini, adam or sgd."""

    def __init__(self, config: ProbeConfig, shape: tuple[int, int]) -> None:
        self.config, self.m, self.v, self.t = config, np.zeros(shape), 0.0, 0

    def step(self, w: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        """The head after one update.

        adam-mini   m <- b1 m + (1-b1) g    v <- b2 v + (1-b2) |g|_F^2 / d
                    W <- W - lr (wd W + m^ / sqrt(v^))
        adam        torch.optim.Adam: g + wd W, v elementwise, W <- W - lr m^ / (sqrt(v^) + 1e-8)
        sgd         torch.optim.SGD:  g + wd W, m <- mu m + g, W <- W - lr m
        """
        c, self.t = self.config, self.t + 1
        if c.optimizer == "sgd":
            self.m = c.momentum * self.m + g + c.weight_decay * w
            return w - lr * self.m
        if c.optimizer == "adam":
            g = g + c.weight_decay * w
            self.v = BETA2_ADAM * self.v + (1 - BETA2_ADAM) * g * g
            denominator = np.sqrt(self.v / (1 - BETA2_ADAM**self.t)) + EPS_ADAM
        elif c.optimizer == "adam-mini":
            self.v = BETA2_MINI * self.v + (1 - BETA2_MINI) * np.sum(g * g) / c.dim
            denominator = max(np.sqrt(self.v / (1 - BETA2_MINI**self.t)), 1e-30)
            w = w - lr * c.weight_decay * w
        else:
            raise ValueError(f"the update of optimiser {c.optimizer!r} is not written here")
        self.m = BETA1 * self.m + (1 - BETA1) * g
        return w - lr * (self.m / (1 - BETA1**self.t)) / denominator


def ranks(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> np.ndarray:
    """rank_i = 1 + #{c != y_i : s(c, i) >= s(y_i, i)}, int32 (n,): ties count against us.

    Parameters
    ----------
    a, b : (C, d), (n, d)
        Gallery and queries.
    y : int64 (n,)
        True class of each query.
    """
    return ranks_of(b @ a.T, y)


def train(batch: ProbeBatch, device: str | None = None, heads: bool = False) -> BatchResult:
    """Train and rank the probes of a batch, one after the other."""
    check_cpu("reference", device)
    c, results = batch.config, []
    for permutation in batch.permutations:
        text = batch.text[permutation]
        w, v, loss = batch.text_start.copy(), batch.audio_start.copy(), np.nan
        of_w, of_v = Optimizer(c, w.shape), Optimizer(c, v.shape)
        for step in range(c.steps):
            loss, dw, dv = loss_and_gradient(
                w, v, text[batch.train_classes], batch.step_rows(step), batch.row_classes, c.temperature, c.symmetric
            )
            w, v = (o.step(h, g, c.learning_rate(step)) for o, h, g in ((of_w, w, dw), (of_v, v, dv)))
        a, b = norm(text @ w)[0], norm(batch.audio[batch.queries] @ v)[0]
        scores, y = csls_scores(b @ a.T, c.csls), batch.labels[batch.queries]
        results.append((loss, ranks_of(scores, y), ranks_of(scores, y, batch.gallery), w, v))
    losses, rank, unseen, text_heads, audio_heads = (np.array(column) for column in zip(*results))
    return BatchResult(losses, rank, unseen, text_heads if heads else None, audio_heads if heads else None)
