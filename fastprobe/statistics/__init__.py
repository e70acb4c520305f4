"""From replicates to claims: p-values, intervals, families, stopping rules, power."""
