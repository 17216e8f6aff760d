"""The shapes of models. The vocabulary's size is not here: it comes from the tokenizer."""

from dataclasses import dataclass
from enum import Enum


class Norm(Enum):
    """Where layer normalisation stands: after the residual sum (the paper) or before the sublayer."""

    post = "post"
    pre = "pre"


class Positions(Enum):
    """How a token learns where it stands (section 3.5; learned positions are row E of table 3)."""

    sinusoidal = "sinusoidal"
    learned = "learned"


@dataclass(frozen=True)
class TransformerConfig:
    """The Transformer of "Attention Is All You Need"; the defaults are the paper's base model.

    Attributes:
        d_k: width of a head's queries and keys; None: d_model / num_heads.
        d_v: width of a head's values; None: as d_k.

    Raises:
        ValueError: if the numbers do not make a model, naming the field.
    """

    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    d_k: int | None = None
    d_v: int | None = None
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    norm: Norm = Norm.post
    positions: Positions = Positions.sinusoidal
    max_positions: int = 1024

    def __post_init__(self) -> None:
        for name in ("d_model", "d_ff", "num_heads", "encoder_layers", "decoder_layers", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if self.d_k is None and self.d_model % self.num_heads:
            raise ValueError(f"d_model: {self.d_model} is not divisible by num_heads: {self.num_heads}; or set d_k")
        for name in ("d_k", "d_v"):
            if (width := getattr(self, name)) is not None and width < 1:
                raise ValueError(f"{name}: must be at least 1, not {width}")
        if self.d_model % 2:
            raise ValueError(f"d_model: must be even for sinusoidal positions, not {self.d_model}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: must be in [0, 1), not {self.dropout}")

    @property
    def key_width(self) -> int:
        """d_k, whether it is given or not."""
        return self.d_k or self.d_model // self.num_heads

    @property
    def value_width(self) -> int:
        """d_v, whether it is given or not."""
        return self.d_v or self.key_width


@dataclass(frozen=True)
class RecurrentConfig:
    """The attentional LSTM of `recurrent.py`.

    Attributes:
        d_model: width of embeddings and of every layer; an encoder layer has half of it in each direction.

    Raises:
        ValueError: if the numbers do not make a model, naming the field.
    """

    d_model: int = 512
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name in ("d_model", "encoder_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if self.d_model % 2:
            raise ValueError(f"d_model: must be even, for the two directions of the encoder, not {self.d_model}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: must be in [0, 1), not {self.dropout}")

    @property
    def max_positions(self) -> None:
        """A recurrent model counts no positions: any length goes."""
        return None
