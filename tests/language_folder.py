"""A language model of random weights in a folder of Hugging Face's form, with a tokenizer learnt from a line."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from transloom.model.config import DecoderConfig
from transloom.model.decoder_only import DecoderOnly
from transloom.pipeline.huggingface import write_huggingface

SHAPE = DecoderConfig(layers=2, d_model=32, d_ff=48, num_heads=4, dropout=0.0, max_positions=64)
TEXT = "To be, or not to be, that is the question: café 日本."


def write_tokenizer(folder: Path) -> int:
    """Writes tokenizer.json, whose end of text is "<|endoftext|>", and returns how many ids it has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def write_language_model(folder: Path, config: DecoderConfig = SHAPE, padding: int = 40) -> DecoderOnly:
    """Writes the folder.

    Args:
        padding: ids of the model that the tokenizer has no tokens for. All of them are likelier than any other.
    """
    tokens = write_tokenizer(folder)
    torch.manual_seed(0)
    model = DecoderOnly(config, tokens + padding).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
        if padding:
            model.norm.bias.fill_(0.3)
            model.embedding.weight[tokens:] = 1.0
    write_huggingface(folder, config, model.vocab_size, model.state_dict())
    return model
