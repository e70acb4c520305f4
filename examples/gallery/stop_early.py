"""Stop when the decision is made.

`permutations` is the most that are run. `anytime` stops when the decision at .05 is made, for or against, and its p holds whenever it
stops; `besag-clifford` stops at the tenth permutation that is as good as the observed run. Both are declared before the first.
"""

import fastprobe as fp
from fastprobe.tables.simulate import simulate_pair

names = [f"class {i}" for i in range(30)]
for alignment in (0.0, 0.9):
    text, audio = simulate_pair(names, alignment=alignment, clips=8, text_width=48, audio_width=32)
    for rule in ("anytime:alpha=0.05", "besag-clifford:h=10"):
        result = fp.permutation_test(text, audio, permutations=500, splits=2, stop=rule, statistic="mrr")
        print(f"alignment {alignment}, {rule:19}: {result.n_permutations:3} of at most 500 permutations, p = {result.pvalue:.3f}")
