"""Builds a model from its configuration. Only this file knows every architecture."""

from transloom.model.classifier import TextClassifier
from transloom.model.config import DecoderConfig, RecurrentConfig, RecurrentDecoderConfig, TransformerConfig
from transloom.model.decoder_only import DecoderOnly
from transloom.model.recurrent import Recurrent
from transloom.model.recurrent_decoder import RecurrentDecoder
from transloom.model.transformer import Transformer

ModelConfig = TransformerConfig | RecurrentConfig | DecoderConfig | RecurrentDecoderConfig
Model = Transformer | Recurrent | DecoderOnly | RecurrentDecoder | TextClassifier

# The names in configurations and model folders.
ARCHITECTURES: dict[str, type[ModelConfig]] = {
    "transformer": TransformerConfig,
    "lstm": RecurrentConfig,
    "decoder_only": DecoderConfig,
    "lstm_decoder_only": RecurrentDecoderConfig,
}


def build_model(config: ModelConfig, vocab_size: int, num_labels: int | None = None) -> Model:
    """A model with fresh weights, drawn from torch's generator.

    Args:
        num_labels: of a text classifier, whose head has labels in place of the vocabulary. None: any other model.
    """
    if num_labels is not None:
        assert isinstance(config, DecoderConfig)
        return TextClassifier(config, vocab_size, num_labels)
    match config:
        case TransformerConfig():
            return Transformer(config, vocab_size)
        case RecurrentConfig():
            return Recurrent(config, vocab_size)
        case DecoderConfig():
            return DecoderOnly(config, vocab_size)
        case RecurrentDecoderConfig():
            return RecurrentDecoder(config, vocab_size)


def architecture_of(config: ModelConfig) -> str:
    """The architecture's name in ARCHITECTURES."""
    return next(name for name, kind in ARCHITECTURES.items() if isinstance(config, kind))
