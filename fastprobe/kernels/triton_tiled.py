"""placeholder"""
def train_tiled(*a, **k): raise NotImplementedError
