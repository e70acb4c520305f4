"""A first test.

One text table, one audio table, one p-value. The tables are simulated, so the answer is known: the sounds follow the
texts, weakly. Put the paths of your own tables in their place.
"""

import matplotlib

matplotlib.use("svg")
import fastprobe as fp
from fastprobe.tables.simulate import simulate_pair

names = [f"class {i}" for i in range(40)]
text, audio = simulate_pair(names, alignment=0.6, clips=10, text_width=96, audio_width=64)

result = fp.permutation_test(text, audio, permutations=199, splits=3, statistic="mean_log_rank")

low, high = result.confidence_interval()
print(f"observed {result.statistic:.3f}, null {result.null_mean:.3f} +- {result.null_sd:.3f} (smaller is better)")
print(f"p = {result.pvalue:.3f}, between {low:.3f} and {high:.3f} with more permutations")
print("statistic per split:", result.per_split.round(3))
result.plot().figure.savefig("first_test.svg")
