"""What several tests share: strategies, small runs, tiny models, cases for the kernels."""
