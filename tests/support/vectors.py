"""What an embedder makes of files, in their order."""

import numpy as np


def vectors(embedder, paths):
    done = sorted(embedder.embed(paths))
    assert [d.index for d in done] == list(range(len(paths))) and all(d.error is None for d in done), done
    return np.stack([d.vector for d in done])
