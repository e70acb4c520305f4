"""The loss in your own training loop.

`fastprobe.kernels.contrastive_loss` takes any number of independent problems at once, with autograd for both sides. On a GPU it never
stores the scores.
"""

import torch
import torch.nn.functional as F

import fastprobe as fp

torch.manual_seed(0)
problems, classes, clips, width = 8, 20, 60, 32
text = torch.randn(problems, classes, width)
labels = torch.arange(clips) % classes
sound = text[:, labels] + 2 * torch.randn(problems, clips, width)  # a noisy image of the right text
head = torch.eye(width).repeat(problems, 1, 1).requires_grad_()

optimizer = torch.optim.Adam([head], lr=0.02)
for step in range(61):
    a, b = F.normalize(text, dim=-1), F.normalize(sound @ head, dim=-1)
    loss = fp.kernels.contrastive_loss(a, b, labels, temperature=0.1)
    if step % 20 == 0:
        print(f"step {step:2}: loss {loss.mean():.3f} ({loss.min():.3f} to {loss.max():.3f} over {problems} problems)")
    optimizer.zero_grad()
    loss.sum().backward()
    optimizer.step()
