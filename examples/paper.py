"""The table of Ngo & Kim 2024 (arXiv 2402.16998) as one command: ten text models x four audio models, FSD50K's leaf classes, acc@3.

    python examples/paper.py FSD50K/ --vectors VECTORS/ --work paper/     # as in the paper; a network and tens of gigabytes of downloads
    python examples/paper.py --dry-run --work paper-dry/                  # every step with small random models; minutes, no network

FSD50K/ holds FSD50K.dev_audio, FSD50K.eval_audio, FSD50K.ground_truth. VECTORS/ holds glove.42B.300d.txt, glove.840B.300d.txt (or
.txt.gz) and GoogleNews-vectors-negative300.bin.gz. LLaMA needs access to its weights, or --llama FOLDER. A table that is there is
not made again, and an interrupted run goes on: start the same command again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT = "the sound of {}"
# Table -> the model's name on the hub, or its file of word vectors.
LANGUAGE_MODELS = {
    "bert": "bert-base-uncased",
    "bert-large": "bert-large-uncased",
    "gpt2": "gpt2",
    "gpt2-xl": "gpt2-xl",
    "t5": "t5-base",
    "t5-large": "t5-large",
    "llama-7b": "huggyllama/llama-7b",
}
WORD_VECTORS = {
    "glove-42b": "glove.42B.300d.txt",
    "glove-840b": "glove.840B.300d.txt",
    "word2vec": "GoogleNews-vectors-negative300.bin.gz",
}
AUDIO_MODELS = ("audiomae", "audiomae-ft", "passt", "pann")


def fastprobe(*arguments: object) -> None:
    """The shell's command, by this very interpreter."""
    code = "from fastprobe.cli.app import main; main()"
    print("fastprobe", *arguments, flush=True)
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


def main() -> None:
    """Embed what is missing, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="FSD50K's folder")
    parser.add_argument("--vectors", type=Path, help="folder of the word vectors' files")
    parser.add_argument("--llama", help="LLaMA-7B's folder, where it is not fetched by name")
    parser.add_argument("--work", type=Path, default=Path("paper"), help="where tables, run and report go")
    parser.add_argument("--dry-run", action="store_true", help="small random models and synthetic sounds in the same layout")
    options = parser.parse_args()
    if not options.dry_run and (options.data is None or options.vectors is None):
        parser.error("give FSD50K's folder and --vectors FOLDER, or --dry-run")
    tables, run = options.work / "tables", options.work / "run"
    tables.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "paper.toml", options.work / "paper.toml")
    data, vectors, language, sounds, brief = options.data, options.vectors, dict(LANGUAGE_MODELS), {}, []
    if options.llama:
        language["llama-7b"] = options.llama
    if options.dry_run:
        data, vectors, language, sounds = small(options.work / "small")
        brief = ["--permutations", 19, "--steps", 5, "--k", "1,3"]

    for name in AUDIO_MODELS:  # clips with exactly one leaf class
        if not (tables / f"{name}.npz").exists():
            fastprobe(
                "embed", "audio", "--model", name, *sounds.get(name, ()), "--dataset", "fsd50k", data, "--out", tables / f"{name}.npz"
            )
    classes = ("--classes", tables / f"{AUDIO_MODELS[0]}.npz")
    for name, model in language.items():
        if not (tables / f"{name}.npz").exists():
            half = ("--dtype", "float16") if name == "llama-7b" and not options.dry_run else ()
            fastprobe("embed", "text", "--model", model, *classes, "--template", PROMPT, *half, "--out", tables / f"{name}.npz")
    for name, file in WORD_VECTORS.items():
        if not (tables / f"{name}.npz").exists():
            found = next((p for p in (vectors / file, vectors / f"{file}.gz") if p.exists()), vectors / file)
            fastprobe("embed", "text", "--model", found, *classes, "--out", tables / f"{name}.npz")
    again = ("--resume",) if (run / "manifest.json").exists() else ()
    fastprobe("run", "--config", options.work / "paper.toml", "--out", run, *brief, *again)
    fastprobe("report", run)
    fastprobe("report", "--atlas", run)


# ---- a dry run: everything of the real one, small and without a network -------------------------------


def small(folder: Path) -> tuple[Path, Path, dict[str, str], dict[str, tuple[object, ...]]]:
    """Sounds in FSD50K's layout, files of word vectors, folders of models with random weights; and the audio models' options."""
    sys.path.insert(0, str(HERE))
    from tiny_fsd50k import CLASSES
    from tiny_fsd50k import main as synthesise

    from fastprobe.extract.names import natural_name

    data, vectors = folder / "fsd50k", folder / "vectors"
    if not data.exists():
        synthesise(data, 1, 0.5)
    words = sorted({w for leaf in CLASSES for w in natural_name(leaf).replace(",", " ").split()})
    write_vectors(vectors, words)
    language = {name: str(language_model(folder / "models" / name, name, words)) for name in LANGUAGE_MODELS}
    # A folder with a configuration alone: --random-init draws the weights. Two blocks, so that a clip takes no time.
    vision = folder / "models" / "audiomae"
    vision.mkdir(parents=True, exist_ok=True)
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "avg"}
    sizes = {
        "input_size": [1, 1024, 128],
        "fixed_input_size": True,
        "num_classes": 527,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 527, "num_features": 32, "model_args": shape, "pretrained_cfg": sizes}
    (vision / "config.json").write_text(json.dumps(config))
    untrained, short = ("--random-init",), ("--random-init", "--pad", "none")
    autoencoder = (*untrained, "--checkpoint", vision)
    return data, vectors, language, {"audiomae": autoencoder, "audiomae-ft": autoencoder, "passt": short, "pann": short}


def write_vectors(folder: Path, words: list[str]) -> None:
    """Random vectors in the published formats: GloVe's text, word2vec's binary, gzipped."""
    import gzip

    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for file in WORD_VECTORS.values():
        rows = random.standard_normal((len(words), 300)).astype("<f4")
        if file.endswith(".txt"):
            (folder / file).write_text("".join(f"{w} {' '.join(f'{v:.5f}' for v in row)}\n" for w, row in zip(words, rows)))
        else:
            with gzip.open(folder / file, "wb") as out:
                out.write(f"{len(words)} 300\n".encode() + b"".join(w.encode() + b" " + row.tobytes() for w, row in zip(words, rows)))


def language_model(folder: Path, name: str, words: list[str]) -> Path:
    """A model of the named family, three layers of 16, with a tokenizer of its kind, as `save_pretrained` leaves it."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(sum(map(ord, name)))
    wide = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    kind = name.split("-")[0]
    model, special = {
        "bert": lambda: (hf.BertModel(hf.BertConfig(**wide)), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
        "gpt2": lambda: (hf.GPT2Model(hf.GPT2Config(vocab_size=400, n_embd=16, n_layer=3, n_head=2)), ["<|endoftext|>"]),
        "t5": lambda: (
            hf.T5Model(hf.T5Config(vocab_size=400, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)),
            ["<pad>", "</s>", "<unk>"],
        ),
        "llama": lambda: (hf.LlamaModel(hf.LlamaConfig(**wide, num_key_value_heads=2)), ["<unk>", "<s>", "</s>"]),
    }[kind]()
    tokenizer = Tokenizer(models.BPE(unk_token=next((s for s in special if "unk" in s.lower()), None)))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [PROMPT.format(w) for w in words]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    around = {"bert": ("[CLS] $A [SEP]", "[CLS]", "[SEP]"), "t5": ("$A </s>", "</s>"), "llama": ("<s> $A", "<s>")}.get(kind)
    if around is not None:
        pairs = [(token, special.index(token)) for token in around[1:]]
        tokenizer.post_processor = processors.TemplateProcessing(single=around[0], special_tokens=pairs)
    pad = {"bert": "[PAD]", "t5": "<pad>"}.get(kind, special[-1])
    model.save_pretrained(folder)
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
