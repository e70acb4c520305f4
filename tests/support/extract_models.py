"""Small models with random weights, written to disk as real checkpoints: what the extractor tests load."""

from __future__ import annotations

import contextlib
import io
import json
import wave
from pathlib import Path

import numpy as np
import soundfile
import torch

CORPUS = [
    "the sound of a dog barking",
    "accelerating, revving, vroom",
    "acoustic guitar",
    "gull, seagull",
    "hi-hat",
    "water tap, faucet",
    "this is the noise of crying and sobbing",
    "fill (with liquid)",
    "a cat meows near the church bell",
    "thunderstorm and rain",
]


def _wordpiece(folder: Path):
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(CORPUS, vocab_size=200, min_frequency=1, show_progress=False)
    trained.save(str(folder / "wp.json"))
    return BertTokenizerFast(tokenizer_file=str(folder / "wp.json"))


def _bytelevel(folder: Path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2TokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=330, min_frequency=1, show_progress=False, special_tokens=["<|endoftext|>"])
    trained.save(str(folder / "bl.json"))
    return GPT2TokenizerFast(tokenizer_file=str(folder / "bl.json"))


def _unigram(folder: Path, begin: bool):
    """SentencePiece's shape: words carry their space; T5 ends with </s>, LLaMA begins with <s>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A" if begin else "$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    extra = {} if begin else {"pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **extra)


def text_model(kind: str, folder: Path) -> Path:
    """A folder that `AutoModel.from_pretrained` loads: bert, roberta-like gpt2, t5 or llama, 3 layers, 16 wide."""
    import transformers as hf

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = {
        "bert": lambda: _wordpiece(folder),
        "gpt2": lambda: _bytelevel(folder),
        "t5": lambda: _unigram(folder, False),
        "llama": lambda: _unigram(folder, True),
    }[kind]()
    vocab = len(tokenizer)
    torch.manual_seed(7)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = {
            "bert": lambda: hf.BertForMaskedLM(
                hf.BertConfig(
                    vocab_size=vocab,
                    hidden_size=16,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    intermediate_size=32,
                    max_position_embeddings=64,
                )
            ),
            "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=vocab, n_embd=16, n_layer=3, n_head=2, n_positions=64)),
            "t5": lambda: hf.T5ForConditionalGeneration(
                hf.T5Config(vocab_size=vocab, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, decoder_start_token_id=0)
            ),
            "llama": lambda: hf.LlamaForCausalLM(
                hf.LlamaConfig(
                    vocab_size=vocab,
                    hidden_size=16,
                    intermediate_size=32,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    max_position_embeddings=64,
                )
            ),
        }[kind]()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def passt_file(path: Path, classes: int = 527) -> Path:
    """PaSST as hear21passt builds it, 2 blocks of 64, its state dict in a file."""
    from hear21passt.models.passt import PaSST

    torch.manual_seed(1)
    net = PaSST(img_size=(128, 998), stride=(10, 10), in_chans=1, num_classes=classes, embed_dim=64, depth=2, num_heads=1, distilled=True)
    torch.save(net.state_dict(), path)
    return path


def audiomae_folder(folder: Path) -> Path:
    """A vision transformer of timm as the hub stores AudioMAE: config.json beside model.safetensors."""
    import timm
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(2)
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "avg"}
    net = timm.create_model("vit_tiny_patch16_224", img_size=(1024, 128), in_chans=1, num_classes=527, **shape)
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architecture": "vit_tiny_patch16_224",
                "num_classes": 527,
                "num_features": 32,
                "global_pool": "avg",
                "model_args": shape,
                "pretrained_cfg": {
                    "tag": "audiomae",
                    "custom_load": False,
                    "input_size": [1, 1024, 128],
                    "fixed_input_size": True,
                    "num_classes": 527,
                    "pool_size": None,
                    "first_conv": "patch_embed.proj",
                    "classifier": "head",
                },
            }
        )
    )
    return folder


def ast_folder(folder: Path, labels: list[str] | None = None) -> Path:
    """AST with a classifier, as its repositories store it."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(3)
    extra = {"id2label": dict(enumerate(labels)), "label2id": {x: i for i, x in enumerate(labels)}} if labels else {}
    config = ASTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_length=1024, **extra)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return folder


def clap_folder(folder: Path, fused: bool = False) -> Path:
    """The whole of CLAP, text side included, as its repositories store it."""
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

    torch.manual_seed(4)
    audio = ClapAudioConfig(
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        patch_embeds_hidden_size=16,
        hidden_size=128,
        projection_dim=24,
        enable_fusion=fused,
    )
    text = ClapTextConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, projection_dim=24
    )
    ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=24)).save_pretrained(folder)
    ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc").save_pretrained(folder)
    return folder


HEAR_MODULE = '''
"""A model with the HEAR API: six means of the spectrum's magnitude."""
import torch


class Model(torch.nn.Module):
    sample_rate = 16000
    scene_embedding_size = 6

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(6))


def load_model(model_file_path=""):
    print("loading, loudly")
    return Model()


def get_scene_embeddings(audio, model):
    spectrum = torch.fft.rfft(audio).abs() / audio.shape[1]
    return torch.stack([p.mean(1) for p in spectrum.chunk(6, dim=1)], 1) * model.scale
'''


def tone(seconds: float, rate: int, hertz: float = 440.0, channels: int = 1, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """A tone with a little noise, float64 (n, channels)."""
    n = max(round(seconds * rate), 1)
    sine = 0.3 * np.sin(2 * np.pi * hertz * np.arange(n) / rate)[:, None]
    return sine + noise * np.random.default_rng(seed).standard_normal((n, channels))


def bad_files(folder):
    """Each kind of bad file, and what must be said of it."""
    whole = {}
    for suffix in ("wav", "flac", "ogg", "mp3"):
        whole[suffix] = folder / f"whole.{suffix}"
        soundfile.write(whole[suffix], tone(1.0, 44100), 44100)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "notes.wav").write_text("this is a note, not a sound")
    with wave.open(str(folder / "silentfile.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
    nan = np.full(8000, np.nan, dtype=np.float32)
    soundfile.write(folder / "nan.wav", nan, 8000, subtype="FLOAT")
    found = {
        "empty.wav": "empty file",
        "notes.wav": "cannot be decoded",
        "silentfile.wav": "no sample",
        "nan.wav": "NaN",
        "absent.wav": "no such file",
    }
    for suffix, path in whole.items():
        (folder / f"torn.{suffix}").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        found[f"torn.{suffix}"] = "truncated|cannot be decoded|holds no sample"
    return found
