"""How many permutations?

Permutations decide how small a p can be; they hardly raise the power at .05. Many pairs cost power, but not permutations: max-T
adjusts inside every permutation, where Bonferroni would need a smaller p from each pair. Nothing is trained here.
"""

from fastprobe.statistics.power import permutations_for, simulate_power, smallest_pvalue

for pairs in (1, 24):
    print(f"{pairs} pairs at .05: {permutations_for(0.05)} permutations at least; {permutations_for(0.05 / pairs)} with Bonferroni")
    for permutations in (99, 999, 9_999):
        power = simulate_power(effect=3.0, null_sd=1.0, permutations=permutations, n_tests=pairs).power
        print(
            f"  {permutations:5} permutations: smallest p {smallest_pvalue(permutations):.4f}, power {power:.2f} at 3 standard deviations"
        )
