"""A run on disk: made, carried out, resumed, merged, checked and summarised."""
