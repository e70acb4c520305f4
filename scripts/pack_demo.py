"""Packs the tables of `fastprobe demo` (fastprobe/tables/data/demo_*.npz) from larger ones.

    python scripts/pack_demo.py FOLDER

FOLDER holds tables as `EmbeddingTable.load` reads them: audioset_vggish.npz (rows are clips), audioset_text_minilm.npz and
audioset_text_word2vec.npz (rows are classes). Where they come from stands in fastprobe/tables/data/DEMO.md. No class and no
clip is chosen by hand: the classes are evenly spaced through the alphabet, the clips of each are drawn at random.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from fastprobe.extract.ngrams import char_ngrams
from fastprobe.tables.demo import AUDIO, FOLDER, TEXTS, demo_file
from fastprobe.tables.embeddings import EmbeddingTable

CLASSES, CLIPS, SEED = 60, 12, 0
CLIPS_OF = "AudioSet (Gemmeke et al. 2017), CC BY 4.0, Google; changed: averaged over frames, selected, float16"
NAMES_OF = "names: AudioSet ontology, CC BY-SA 4.0, Google"
SOURCES = {
    "vggish": f"VGGish features as released with {CLIPS_OF}",
    "minilm": f"sentence-transformers/all-MiniLM-L6-v2, Apache-2.0; {NAMES_OF}",
    "word2vec": f"GoogleNews-vectors-negative300, Apache-2.0, averaged over the words of a name; {NAMES_OF}",
    "char-ngrams": f"hashed character 2- and 3-grams of the name, made by fastprobe; {NAMES_OF}",
}
SOURCES["minilm-shuffled"] = f"rows in random order: {SOURCES['minilm']}"


def choose_classes(audio: EmbeddingTable) -> list[str]:
    """Labels with clips enough, evenly spaced through the alphabet."""
    names, counts = np.unique(audio.labels, return_counts=True)
    names = names[counts >= CLIPS]
    if len(names) < CLASSES:
        raise SystemExit(f"{len(names)} classes have {CLIPS} different clips; {CLASSES} are needed.")
    return names[np.linspace(0, len(names) - 1, CLASSES).round().astype(int)].tolist()


def choose_clips(audio: EmbeddingTable, classes: list[str]) -> EmbeddingTable:
    """Clips of each class at random, in the order of the file."""
    rng = np.random.default_rng(SEED)
    drawn = [np.sort(rng.permutation(np.flatnonzero(audio.labels == name))[:CLIPS]) for name in classes]
    return audio.select(np.concatenate(drawn))


def without_repeats(audio: EmbeddingTable) -> EmbeddingTable:
    """Each vector once: the same recording uploaded twice would be two clips with one content."""
    first = np.unique(audio.vectors, axis=0, return_index=True)[1]
    return audio.select(np.sort(first))


def of_classes(text: EmbeddingTable, classes: list[str]) -> EmbeddingTable:
    """One row for each class, in their order."""
    row = {str(label): i for i, label in enumerate(text.labels)}
    return text.select(np.array([row[name] for name in classes]))


def shuffled(text: EmbeddingTable) -> EmbeddingTable:
    """The same vectors dealt out to other names at random: a pair with it is null by construction."""
    return EmbeddingTable(np.random.default_rng(SEED).permutation(text.vectors), text.labels, text.ids)


def save(table: EmbeddingTable, name: str, folder: Path) -> Path:
    """A compressed .npz of half precision, its provenance in `meta`."""
    path = folder / demo_file(name).name
    meta = {"name": name, "source_and_licence": SOURCES[name]}
    np.savez_compressed(
        path, vectors=table.vectors.astype(np.float16), labels=table.labels, ids=table.ids, meta=json.dumps(meta, sort_keys=True)
    )
    return path


def pack(source: Path, folder: Path) -> list[Path]:
    """Make all tables of the demo from those in `source`."""
    audio = without_repeats(EmbeddingTable.load(source / "audioset_vggish.npz"))
    classes = choose_classes(audio)
    tables = {AUDIO: choose_clips(audio, classes), "char-ngrams": char_ngrams(classes)}
    for name in ("minilm", "word2vec"):
        tables[name] = of_classes(EmbeddingTable.load(source / f"audioset_text_{name}.npz"), classes)
    tables["minilm-shuffled"] = shuffled(tables["minilm"])
    return [save(tables[name], name, folder) for name in (AUDIO, *TEXTS)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack the tables of `fastprobe demo`.")
    parser.add_argument("source", type=Path, help="folder with the larger tables")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to write; by default into the package")
    arguments = parser.parse_args()
    paths = pack(arguments.source, arguments.out)
    for path in paths:
        print(f"{path.stat().st_size:>9,} bytes  {path.name}")
    print(f"{sum(p.stat().st_size for p in paths):>9,} bytes in all")


if __name__ == "__main__":
    main()
