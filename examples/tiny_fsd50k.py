"""Make a small folder in FSD50K's layout, with synthetic sounds: tiny_fsd50k.py DIR [CLIPS_PER_CLASS [SECONDS]].

Each class is a tone, a sweep or a pulse train of its own; labels are propagated to their ancestors, as the data set's are.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import soundfile

# Leaf -> its ancestors.
CLASSES = {
    "Bark": ["Dog", "Domestic_animals_and_pets", "Animal"],
    "Growling": ["Dog", "Domestic_animals_and_pets", "Animal"],
    "Meow": ["Cat", "Domestic_animals_and_pets", "Animal"],
    "Purr": ["Cat", "Domestic_animals_and_pets", "Animal"],
    "Crow": ["Bird", "Wild_animals", "Animal"],
    "Gull_and_seagull": ["Bird", "Wild_animals", "Animal"],
    "Acoustic_guitar": ["Guitar", "Music"],
    "Electric_guitar": ["Guitar", "Music"],
    "Snare_drum": ["Drum", "Music"],
    "Bass_drum": ["Drum", "Music"],
    "Church_bell": ["Bell"],
    "Bicycle_bell": ["Bell"],
}
RATE = 44100


def sound(kind: int, take: int, seconds: float) -> np.ndarray:
    """A take of class `kind`: the same shape, another pitch, level and noise."""
    random = np.random.default_rng([kind, take])
    time = np.arange(int(RATE * seconds)) / RATE
    pitch = 110 * 1.35**kind * random.uniform(0.97, 1.03)
    phase = 2 * np.pi * pitch * time
    wave = (np.sin(phase), np.sin(phase * (1 + 0.5 * time / seconds)), np.sin(phase) * (np.sin(2 * np.pi * (3 + kind) * time) > 0))[
        kind % 3
    ]
    return 0.2 * random.uniform(0.5, 1.5) * wave + 0.01 * random.standard_normal(len(time))


def main(folder: Path, clips: int = 4, seconds: float = 1.0) -> None:
    truth = folder / "FSD50K.ground_truth"
    truth.mkdir(parents=True, exist_ok=True)
    number = 1000
    for part in ("dev", "eval"):
        (folder / f"FSD50K.{part}_audio").mkdir(exist_ok=True)
        with open(truth / f"{part}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["fname", "labels", "mids"] + (["split"] if part == "dev" else []))
            for kind, (leaf, ancestors) in enumerate(CLASSES.items()):
                for _ in range(clips):
                    number += 1
                    labels = ",".join([leaf, *ancestors])
                    writer.writerow([number, labels, ",".join("/m/x" for _ in labels.split(","))] + (["train"] if part == "dev" else []))
                    soundfile.write(folder / f"FSD50K.{part}_audio" / f"{number}.wav", sound(kind, number, seconds), RATE)
    # Two sounds at once: this clip carries two leaf labels, and is left out unless asked for.
    with open(truth / "eval.csv", "a", newline="") as file:
        csv.writer(file).writerow([number + 1, "Bark,Dog,Domestic_animals_and_pets,Animal,Church_bell,Bell", "/m/x"])
    soundfile.write(folder / "FSD50K.eval_audio" / f"{number + 1}.wav", sound(0, 0, seconds) + sound(10, 0, seconds), RATE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(float(a) if "." in a else int(a) for a in sys.argv[2:]))
