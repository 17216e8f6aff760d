"""The shapes of models. The vocabulary's size is not here: it comes from the tokenizer."""

from dataclasses import dataclass
from enum import Enum


class Norm(Enum):
    """Where layer normalisation stands: after the residual sum (the paper) or before the sublayer."""

    post = "post"
    pre = "pre"


class Normalization(Enum):
    """By what a token's vector is normalised: mean and variance (the paper), or its root mean square alone
    (Zhang and Sennrich 2019)."""

    layer = "layer"
    rms = "rms"


class Activation(Enum):
    """What stands between the two products of a feed-forward layer: max(0, x) (equation 2), GELU (Hendrycks and Gimpel
    2016), or SiLU gated by a third product (SwiGLU, Shazeer 2020)."""

    relu = "relu"
    gelu = "gelu"
    swiglu = "swiglu"


class Positions(Enum):
    """How a token learns where it stands: added to its embedding (section 3.5; learned positions are row E of table 3),
    or as a rotation of queries and keys in self-attention (RoPE, Su et al. 2021)."""

    sinusoidal = "sinusoidal"
    learned = "learned"
    rotary = "rotary"


@dataclass(frozen=True)
class TransformerConfig:
    """The Transformer of "Attention Is All You Need"; the defaults are the paper's base model.

    Attributes:
        d_k: width of a head's queries and keys; None: d_model / num_heads.
        d_v: width of a head's values; None: as d_k.
        key_value_heads: heads of keys and values, each shared by as many heads of queries (grouped-query attention,
            Ainslie et al. 2023); None: num_heads.
        d_ff: with SwiGLU each of the two inner products is so wide.
        bias: whether products and normalisations have one.

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
    normalization: Normalization = Normalization.layer
    activation: Activation = Activation.relu
    key_value_heads: int | None = None
    bias: bool = True

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
        if self.positions is Positions.rotary and self.key_width % 2:
            raise ValueError(f"d_k: must be even for rotary positions, not {self.key_width}")
        if self.key_value_heads is not None and (self.key_value_heads < 1 or self.num_heads % self.key_value_heads):
            raise ValueError(f"key_value_heads: must divide num_heads ({self.num_heads}), not {self.key_value_heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: must be in [0, 1), not {self.dropout}")

    @property
    def is_of_the_paper(self) -> bool:
        """Whether all layers are those of the paper, as other programs have them too."""
        return (self.normalization, self.activation, self.shared_heads, self.bias) == (
            Normalization.layer,
            Activation.relu,
            self.num_heads,
            True,
        ) and self.positions is not Positions.rotary

    @property
    def has_one_width(self) -> bool:
        """Whether queries, keys and values are equally wide, as kernels on packed tokens need them."""
        return self.key_width == self.value_width and self.shared_heads == self.num_heads

    @property
    def shared_heads(self) -> int:
        """key_value_heads, whether it is given or not."""
        return self.key_value_heads or self.num_heads

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
