"""From a configuration to its model: the one place that knows them all."""

from model.config import RecurrentConfig, TransformerConfig
from model.recurrent import Recurrent
from model.transformer import Transformer

ModelConfig = TransformerConfig | RecurrentConfig
Model = Transformer | Recurrent

# What configurations and model folders call them.
ARCHITECTURES: dict[str, type[TransformerConfig] | type[RecurrentConfig]] = {
    "transformer": TransformerConfig,
    "lstm": RecurrentConfig,
}


def build_model(config: ModelConfig, vocab_size: int) -> Model:
    """A model with fresh weights, drawn from torch's generator."""
    match config:
        case TransformerConfig():
            return Transformer(config, vocab_size)
        case RecurrentConfig():
            return Recurrent(config, vocab_size)


def architecture_of(config: ModelConfig) -> str:
    """The name in ARCHITECTURES."""
    return next(name for name, kind in ARCHITECTURES.items() if isinstance(config, kind))
