"""What does it hear?

A p-value says that something is there. A fitted probe shows what: the texts nearest to each clip, for classes that it was
never trained on.
"""

import tempfile
from pathlib import Path

import fastprobe as fp
from fastprobe.tables.simulate import fsd50k_leaf_names, simulate_pair

names = fsd50k_leaf_names()
text, audio = simulate_pair(names, alignment=1.0, clips=4)
train = names[::2]
probe = fp.ContrastiveProbe(fp.ProbeConfig(steps=100)).fit(text, audio, classes=train)
print(f"acc@3 on {len(names) - len(train)} unseen classes, among all {len(names)} texts: {probe.score(k=3):.2f}")

unseen = audio.select(~(audio.labels[:, None] == train).any(axis=1))
labels, scores = probe.retrieve(unseen.vectors[:40:8], k=3)
for label, row, score in zip(unseen.labels[:40:8], labels, scores):
    print(f"{label:24} -> " + ", ".join(f"{name} {s:.2f}" for name, s in zip(row, score)))

with tempfile.TemporaryDirectory() as folder:
    probe.save(Path(folder) / "probe.safetensors")
    again = fp.ContrastiveProbe.load(Path(folder) / "probe.safetensors")
assert again.digest == probe.digest
