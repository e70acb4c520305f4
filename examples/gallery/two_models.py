"""Is one model better than the other?

"Better than its own null" is not "better than the other model". Both are trained on the same splits, and the differences of the
splits are tested with a variance that allows for the classes they share (Nadeau & Bengio 2003).
"""

import numpy as np

import fastprobe as fp
from fastprobe.statistics.comparison import nadeau_bengio_test
from fastprobe.tables.simulate import simulate_pair

names = [f"class {i}" for i in range(50)]
good, audio = simulate_pair(names, alignment=0.9, clips=8, text_width=64, audio_width=64)
noise = np.random.default_rng(1).standard_normal(good.vectors.shape)
poor = fp.EmbeddingTable(good.vectors + 0.7 * noise, good.labels, meta={"name": "poor"})

first, second = fp.permutation_test([good, poor], audio, permutations=19, splits=8, statistic="mrr")
print(f"good {first.statistic:.3f}, p {first.pvalue:.2f};  poor {second.statistic:.3f}, p {second.pvalue:.2f}")

test = nadeau_bengio_test(first.per_split - second.per_split, first.n_train, first.n_test)
print(f"difference {test.mean:.3f}, from {test.low:.3f} to {test.high:.3f}, p = {test.pvalue:.1g}")
print(f"standard error {test.se_corrected:.3f}; {test.se_naive:.3f} if the splits were independent")
