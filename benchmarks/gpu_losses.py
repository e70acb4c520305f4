"""Published fused losses that compute our one-way contrastive loss of one probe: peers of `benchmarks.gpu.loss_op`.

    liger-kernel       logits chunk by chunk through cuBLAS, softmax and gradient in one kernel, in the forward pass
    cut-cross-entropy  tiles of logits recomputed in the backward pass, sums behind locks
    inf-cl             the loss of Inf-CLIP: tiles in float32 (tf32 products), whatever comes in

None has an axis of independent probes. They are optional: one that is not installed says so in the table. Each loss has
the signature of ours, ``loss(text (1, m, d), audio (1, n, d), labels (1, n), temperature)``, and temperature divides the
audio, so that gradients are those of ours.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


def liger(text: torch.Tensor, audio: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Liger Kernel: a linear layer (the texts) and cross entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(text[0], audio[0] / temperature, labels[0])


def cut_cross_entropy(text: torch.Tensor, audio: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cut Cross Entropy; by default it drops small gradients, which `filter_eps` None turns off."""
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(audio[0] / temperature, text[0], labels[0], filter_eps=None)


def inf_cl(text: torch.Tensor, audio: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Inf-CLIP on one device; it walks through d in heads."""
    from inf_cl import cal_flash_loss

    return cal_flash_loss(audio[0], text[0], labels[0], 1 / temperature, head_dim=head_width(text.shape[2])).mean()


def head_width(d: int) -> int:
    """The widest head that Inf-CLIP's offsets allow: a power of two up to 256 that divides d."""
    return min(d & -d, 256)


def _half_only(m: int, n: int, d: int, dtype: torch.dtype) -> str | None:
    return None if dtype in (torch.bfloat16, torch.float16) else "its backward takes half precision only"


def _whole_tiles(m: int, n: int, d: int, dtype: torch.dtype) -> str | None:
    # The gradient of its row losses is read unmasked, past its end where the last tile is not full.
    return "needs n divisible by 64 and d by 16" if n % 64 or head_width(d) < 16 else None


@dataclass(frozen=True)
class Published:
    """A published loss.

    Attributes
    ----------
    package : str
        What pip installs, and the name in the table.
    module : str
    loss : callable
    unfit : callable (m, n, d, dtype) -> str or None
        Why it cannot take operands of that shape and dtype.
    """

    package: str
    module: str
    loss: Loss
    unfit: Callable[[int, int, int, torch.dtype], str | None] = lambda *_: None

    def why_not(self, m: int, n: int, d: int, dtype: torch.dtype) -> str | None:
        """Why it is not measured, or None."""
        if importlib.util.find_spec(self.module) is None:
            return f"not installed (pip install {self.package})"
        return self.unfit(m, n, d, dtype)


PUBLISHED = (
    Published("liger-kernel", "liger_kernel", liger),
    Published("cut-cross-entropy", "cut_cross_entropy", cut_cross_entropy, _half_only),
    Published("inf-cl", "inf_cl", inf_cl, _whole_tiles),
)
