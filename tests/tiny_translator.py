"""Translators with random weights, which translate to something in milliseconds."""

from pathlib import Path

import torch

from transloom.jobs.config.compose import load_config, to_yaml
from transloom.model.build import ModelConfig, build_model
from transloom.model.config import Norm, RecurrentConfig, TransformerConfig
from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from transloom.pipeline.files import write_json
from transloom.pipeline.model_folder import save_model

TRANSFORMER = TransformerConfig(
    d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=2, norm=Norm.pre, max_positions=40
)
LSTM = RecurrentConfig(d_model=16, encoder_layers=1, decoder_layers=2)
LINES = [f"Der Hund Nummer {i} läuft zum Haus {i * 7}." for i in range(200)]


def make_tokenizer(folder: Path, lines: list[str] = LINES) -> Path:
    """A folder with a tokenizer of the lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text").write_bytes("".join(f"{line}\n" for line in lines).encode())
    train_tokenizer([folder / "text"], TokenizerConfig(vocab_size=320), folder)
    return folder


def make_model(folder: Path, tokenizer: Path, config: ModelConfig = TRANSFORMER, seed: int = 0) -> Path:
    """A model folder."""
    torch.manual_seed(seed)
    weights = build_model(config, Tokenizer.load(tokenizer).vocab_size).state_dict()
    # A new model mostly repeats the token that it reads, for its output weights are its embedding.
    weights = {
        name: 3 * value if value.dim() == 2 and name != "embedding.weight" else value for name, value in weights.items()
    }
    about = {"steps": [1, 2], "source_language": "en", "target_language": "de", "task": "translation"}
    save_model(folder, config, weights, tokenizer, about)
    return folder


def make_run(root: Path, name: str, tokenizer: Path, seed: int = 0) -> Path:
    """The folder of a run in an output folder: what commands read of one that is trained."""
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    config = load_config([f"output_dir={root}", f"name={name}"])
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_json(folder / "prepared.json", {})
    make_model(folder / "model", tokenizer, seed=seed)
    return folder
