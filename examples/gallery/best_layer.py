"""The best of several layers.

Each layer of a model is a text table. Taking the best one and quoting its own p would be dishonest; the maximum over layers
is therefore taken inside every permutation as well, so that choosing is paid for.
"""

import numpy as np

import fastprobe as fp
from fastprobe.statistics.multiplicity import best_of, max_t
from fastprobe.tables.simulate import simulate_pair

names = [f"class {i}" for i in range(40)]
alignments = [0.0, 0.3, 0.8, 0.3]
layers = []
for layer, alignment in enumerate(alignments):
    # The sounds are those of the layer that fits best; the other layers see their texts through noise.
    text, audio = simulate_pair(names, alignment=0.9, clips=8, text_width=64, audio_width=64)
    noise = np.random.default_rng(layer).standard_normal(text.vectors.shape)
    vectors = alignment * text.vectors + np.sqrt(1 - alignment**2) * noise
    layers.append(fp.EmbeddingTable(vectors, text.labels, meta={"name": f"model-layer{layer}"}))

results = fp.permutation_test(layers, audio, permutations=99, splits=3, statistic="mrr")
for result in results:
    print(f"{result.text}: mrr {result.statistic:.3f}, p {result.pvalue:.2f}, adjusted for all layers {result.pvalue_max_t:.2f}")

replicates = np.stack([np.r_[r.statistic, r.null_distribution] for r in results])
models, winners, maxima = best_of(replicates, ["model"] * len(results))
print(f"best: {results[winners[0]].text}, p of the model {max_t(maxima)[0]:.2f}")
