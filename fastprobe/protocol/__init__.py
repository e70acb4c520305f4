"""What is asked of a pair: splits, permutations, features, metrics, controls. No file is read here and nothing is trained."""
