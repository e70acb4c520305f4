"""More than the category?

Here the sounds know the *category* of a class and nothing else. Shuffling all texts rejects nevertheless: it asks whether anything
carries over. Shuffling within categories asks for more than the category, and finds nothing.
"""

import numpy as np

import fastprobe as fp

rng = np.random.default_rng(0)
names = np.array([f"class {i:02d}" for i in range(40)])
category = {name: f"category {i % 4}" for i, name in enumerate(names)}
clips = np.repeat(np.arange(40), 10)

centres = 2 * rng.standard_normal((4, 48))
text = (centres[np.arange(40) % 4] + rng.standard_normal((40, 48)), names)
sounds = 2 * rng.standard_normal((4, 32))
own = rng.standard_normal((40, 32))
audio = (sounds[clips % 4] + own[clips] + rng.standard_normal((400, 32)), names[clips])

options = {"permutations": 99, "splits": 3, "statistic": "mean_log_rank"}
anything = fp.permutation_test(text, audio, **options)
more = fp.permutation_test(text, audio, control="permute-within", groups=category, **options)
print(f"anything at all:        p = {anything.pvalue:.2f}")
print(f"more than the category: p = {more.pvalue:.2f}")
