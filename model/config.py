"""The shapes of models. The vocabulary's size comes from the tokenizer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

NORM_EPSILON = 1e-5  # torch's


class Norm(Enum):
    """The place of layer normalisation: after the residual sum (the paper) or before the sublayer."""

    post = "post"
    pre = "pre"


class Normalization(Enum):
    """The normalisation of a token's vector: by mean and variance (the paper), or by the root mean square alone
    (Zhang and Sennrich 2019)."""

    layer = "layer"
    rms = "rms"


class Activation(Enum):
    """The function between the two products of a feed-forward layer: max(0, x) (equation 2), the exact GELU (Hendrycks
    and Gimpel 2016), GPT-2's approximation of GELU with tanh, or SiLU gated by a third product (SwiGLU, Shazeer
    2020)."""

    relu = "relu"
    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    swiglu = "swiglu"


class Positions(Enum):
    """How a token's position enters the model: added to the embedding (section 3.5; learned positions are row E of
    table 3), as a rotation of queries and keys in self-attention (RoPE, Su et al. 2021), or as a distance that lowers
    self-attention's scores (ALiBi, Press et al. 2022)."""

    sinusoidal = "sinusoidal"
    learned = "learned"
    rotary = "rotary"
    alibi = "alibi"


class Attention(Enum):
    """What a token sees in self-attention: all tokens of its text (equation 1), those of a window around it (Beltagy et
    al. 2020), or all of them by sums of feature maps in place of softmax (Katharopoulos et al. 2020)."""

    full = "full"
    window = "window"
    linear = "linear"


class FeatureMap(Enum):
    """The map of queries and keys in linear attention: elu(x) + 1 (Katharopoulos et al. 2020, equation 7), or positive
    orthogonal random features, which approximate softmax (FAVOR+, Choromanski et al. 2021)."""

    elu = "elu"
    favor = "favor"


class Pooling(Enum):
    """How a classifier makes one vector of a text: the mean over its tokens, or the vector of its last token."""

    mean = "mean"
    last = "last"


@dataclass(frozen=True)
class TransformerConfig:
    """The Transformer of "Attention Is All You Need"; the defaults are the paper's base model.

    Attributes:
        d_model: width of a token's vector in every layer.
        d_ff: width of the inner product; with SwiGLU of each of the two inner products.
        num_heads: heads of each attention.
        d_k: width of a head's queries and keys; None: d_model / num_heads.
        d_v: width of a head's values; None: as d_k.
        encoder_layers: layers of the encoder; a deep encoder costs little in translating.
        decoder_layers: layers of the decoder; translating takes a pass through all of them for every token.
        dropout: of embeddings and of each sublayer's output (section 5.4).
        norm: whether a sublayer's normalisation stands behind the residual sum (post, the paper) or before the sublayer
            (pre).
        positions: sinusoidal (the paper) and learned ones are added to the embedding; rotary turns queries and keys.
        max_positions: tokens of the longest sentence.
        normalization: by mean and variance (layer, the paper), or by the root mean square alone (rms).
        activation: between the two products of a feed-forward layer; swiglu is gated by a third product.
        key_value_heads: heads of keys and values, each shared by as many heads of queries (grouped-query attention,
            Ainslie et al. 2023); None: num_heads.
        bias: whether products and normalisations have a bias.
        attention: of a token to its own text; attention to the source is always full.
        window: with attention=window, the tokens that a token sees: itself and the window - 1 before it; where it sees
            both sides, also the window - 1 behind it.
        global_tokens: with attention=window, so many first tokens of every text see all tokens, and all tokens see
            them; a causal token sees nothing behind itself.
        feature_map: with attention=linear, the map of queries and keys.
        random_features: with feature_map=favor, their number for each head.
        shared_embeddings: whether source and target have one embedding (the paper); the output always has the target's.

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
    attention: Attention = Attention.full
    window: int = 256
    global_tokens: int = 0
    feature_map: FeatureMap = FeatureMap.elu
    random_features: int = 256
    shared_embeddings: bool = True

    def __post_init__(self) -> None:
        _check(self, ("d_model", "d_ff", "num_heads", "encoder_layers", "decoder_layers", "max_positions"))
        if self.d_k is None and self.d_model % self.num_heads:
            raise ValueError(f"d_model: {self.d_model} is not divisible by num_heads: {self.num_heads}; or set d_k")
        for name in ("d_k", "d_v"):
            if (width := getattr(self, name)) is not None and width < 1:
                raise ValueError(f"{name}: must be at least 1, not {width}")
        if self.d_model % 2:
            raise ValueError(f"d_model: must be even for sinusoidal positions, not {self.d_model}")
        if self.positions is Positions.rotary and self.key_width % 2:
            raise ValueError(f"d_k: must be even for rotary positions, not {self.key_width}")
        _check_heads(self)
        _check_attention(self)

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of each stack."""
        return self.encoder_layers, self.decoder_layers

    @property
    def is_of_the_paper(self) -> bool:
        """Whether all layers and embeddings are those of the paper, which other programs implement too."""
        own = self.normalization, self.activation, self.shared_heads, self.bias, self.attention, self.shared_embeddings
        return own == (
            Normalization.layer,
            Activation.relu,
            self.num_heads,
            True,
            Attention.full,
            True,
        ) and self.positions in (Positions.sinusoidal, Positions.learned)

    @property
    def has_packed_attention(self) -> bool:
        """Whether kernels on packed tokens compute all attention of the model on a GPU in 16 bits."""
        return self.key_width == self.value_width and self.shared_heads == self.num_heads and _fits_kernels(self)

    @property
    def shared_heads(self) -> int:
        """key_value_heads, or its default."""
        return self.key_value_heads or self.num_heads

    @property
    def key_width(self) -> int:
        """d_k, or its default."""
        return self.d_k or self.d_model // self.num_heads

    @property
    def value_width(self) -> int:
        """d_v, or its default."""
        return self.d_v or self.key_width

    @property
    def norm_epsilon(self) -> float:
        """The constant that normalisations add to the variance."""
        return NORM_EPSILON

    def multiply_adds(self, vocab_size: int) -> tuple[int, int]:
        """Multiply-adds of the forward pass per (source token, target token), without attention's own products."""
        layer, keys_and_values = _layer_multiply_adds(self)
        query_and_output = self.d_model * self.num_heads * (self.key_width + self.value_width)
        source = self.encoder_layers * layer + self.decoder_layers * keys_and_values
        return source, self.decoder_layers * (layer + query_and_output) + vocab_size * self.d_model


@dataclass(frozen=True)
class RecurrentConfig:
    """The attentional LSTM of `recurrent.py`.

    Attributes:
        d_model: width of embeddings and of every layer; an encoder layer has d_model / 2 in each direction.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        dropout: of embeddings and of each layer's output.

    Raises:
        ValueError: if the numbers do not make a model, naming the field.
    """

    d_model: int = 512
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        _check(self, ("d_model", "encoder_layers", "decoder_layers"))
        if self.d_model % 2:
            raise ValueError(f"d_model: must be even, for the two directions of the encoder, not {self.d_model}")

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of each stack."""
        return self.encoder_layers, self.decoder_layers

    @property
    def max_positions(self) -> None:
        """None: a recurrent model takes sentences of any length."""
        return None

    @property
    def has_packed_attention(self) -> bool:
        """False: no kernel on packed tokens computes a recurrent model's attention."""
        return False

    def multiply_adds(self, vocab_size: int) -> tuple[int, int]:
        """Multiply-adds of the forward pass per (source token, target token), without attention's own products. Each of
        an LSTM's four gates has a product with the input and a product with the state."""
        square = self.d_model**2
        direction = 4 * (self.d_model // 2) * (self.d_model + self.d_model // 2)
        source = self.encoder_layers * 2 * direction + square  # the keys
        # A layer above the bottom one also reads the context.
        bottom, above, output = 8 * square, 12 * square, 2 * square
        return source, bottom + (self.decoder_layers - 1) * above + output + vocab_size * self.d_model


@dataclass(frozen=True)
class RecurrentDecoderConfig:
    """The LSTM language model of `recurrent_decoder.py`.

    Attributes:
        d_model: width of embeddings and of every layer.
        layers: layers of the stack.
        dropout: of embeddings and of each layer's output.
        max_positions: the context: tokens of the longest text that it is trained on.

    Raises:
        ValueError: if the numbers do not make a model, naming the field.
    """

    d_model: int = 512
    layers: int = 2
    dropout: float = 0.1
    max_positions: int = 1024

    def __post_init__(self) -> None:
        _check(self, ("d_model", "layers", "max_positions"))

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of each stack."""
        return (self.layers,)

    @property
    def causal(self) -> bool:
        """True: a token sees only itself and the tokens before it."""
        return True

    @property
    def has_packed_attention(self) -> bool:
        """False: there is no attention."""
        return False

    def multiply_adds(self, vocab_size: int) -> tuple[int, int]:
        """Multiply-adds of the forward pass per (source token, token); the first is 0, without a source. Each of an
        LSTM's four gates has a product with the input and a product with the state."""
        return 0, 8 * self.layers * self.d_model**2 + vocab_size * self.d_model


@dataclass(frozen=True)
class DecoderConfig:
    """The language model of `decoder_only.py`; the defaults are GPT-2's smallest (Radford et al. 2019, table 2).

    Attributes:
        layers: layers of the stack.
        d_model: width of a token's vector in every layer.
        d_ff: width of the inner product; with SwiGLU of each of the two inner products.
        num_heads: heads of each attention.
        key_value_heads: heads of keys and values, each shared by as many heads of queries; None: num_heads.
        dropout: of embeddings, of attention's weights (linear attention has none), and of each sublayer's output.
        norm: whether a sublayer's normalisation stands behind the residual sum (post) or before the sublayer (pre).
        normalization: by mean and variance (layer), or by the root mean square alone (rms).
        norm_epsilon: the constant that normalisations add to the variance.
        activation: between the two products of a feed-forward layer; swiglu is gated by a third product.
        positions: sinusoidal and learned ones are added to the embedding; rotary turns queries and keys.
        rotary_base: the angle of a head's pair i turns by rotary_base^(-2i / width) a position.
        bias: whether products and normalisations have a bias.
        max_positions: the context: tokens of the longest text.
        tied: whether the embedding is also the output projection.
        causal: whether a token sees only itself and the tokens before it; false: the whole text, as an encoder does,
            for classification and masked language models.
        pooling: of a classifier; other models do not read it.
        attention: of a token to its own text; attention to the source is always full.
        window: with attention=window, the tokens that a token sees: itself and the window - 1 before it; where it sees
            both sides, also the window - 1 behind it.
        global_tokens: with attention=window, so many first tokens of every text see all tokens, and all tokens see
            them; a causal token sees nothing behind itself.
        feature_map: with attention=linear, the map of queries and keys.
        random_features: with feature_map=favor, their number for each head.
        initial_std: the standard deviation of the first weights. GPT-2's 0.02 is 0.55 / sqrt(d_model) for its width;
            with much smaller weights a narrow model looks at all tokens alike for long.

    Raises:
        ValueError: if the numbers do not make a model, naming the field.
    """

    layers: int = 12
    d_model: int = 768
    d_ff: int = 3072
    num_heads: int = 12
    key_value_heads: int | None = None
    dropout: float = 0.1
    norm: Norm = Norm.pre
    normalization: Normalization = Normalization.layer
    norm_epsilon: float = NORM_EPSILON
    activation: Activation = Activation.gelu_tanh
    positions: Positions = Positions.learned
    rotary_base: float = 10000.0
    max_positions: int = 1024
    bias: bool = True
    tied: bool = True
    causal: bool = True
    pooling: Pooling = Pooling.mean
    attention: Attention = Attention.full
    window: int = 256
    global_tokens: int = 0
    feature_map: FeatureMap = FeatureMap.elu
    random_features: int = 256
    initial_std: float = 0.02

    def __post_init__(self) -> None:
        _check(self, ("layers", "d_model", "d_ff", "num_heads", "max_positions"))
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model: {self.d_model} is not divisible by num_heads: {self.num_heads}")
        if self.positions is Positions.rotary and self.key_width % 2:
            raise ValueError(f"d_model: must be even for each of num_heads with rotary positions, not {self.key_width}")
        if self.positions is Positions.sinusoidal and self.d_model % 2:
            raise ValueError(f"d_model: must be even for sinusoidal positions, not {self.d_model}")
        _check_heads(self)
        _check_attention(self)
        for name in ("norm_epsilon", "rotary_base", "initial_std"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name)}")

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of each stack."""
        return (self.layers,)

    @property
    def has_packed_attention(self) -> bool:
        """Whether kernels on packed tokens compute the model's attention on a GPU in 16 bits; these lack dropout."""
        return self.dropout == 0.0 and _fits_kernels(self)

    @property
    def shared_heads(self) -> int:
        """key_value_heads, or its default."""
        return self.key_value_heads or self.num_heads

    @property
    def key_width(self) -> int:
        """Width of a head's queries and keys."""
        return self.d_model // self.num_heads

    @property
    def value_width(self) -> int:
        """Width of a head's values."""
        return self.key_width

    def multiply_adds(self, vocab_size: int, length: int = 0) -> tuple[int, int]:
        """Multiply-adds of the forward pass per (source token, token); the first is 0, without a source.

        Args:
            length: tokens of a text, for attention's own products, 2 * length * d_model a layer (Chowdhery et al. 2022,
                appendix B: the masked half is counted); of a window at most those of the tokens that it shows. Linear
                attention's are the same for any length. 0: without these products.
        """
        layer = _layer_multiply_adds(self)[0] + self._attention_multiply_adds(length)
        return 0, self.layers * layer + vocab_size * self.d_model

    def _attention_multiply_adds(self, length: int) -> int:
        """Of attention's own products, for each token and layer."""
        if self.attention is Attention.linear and length:
            features = self.key_width if self.feature_map is FeatureMap.elu else self.random_features
            mapped = 0 if self.feature_map is FeatureMap.elu else features * self.key_width
            # A key is added to the sums of its head, which a query reads.
            sums = features * self.value_width
            return (self.num_heads + self.shared_heads) * (mapped + sums)
        if self.attention is Attention.window:
            shown = self.window if self.causal else 2 * self.window - 1
            length = min(length, shown + self.global_tokens)
        return 2 * length * self.d_model


# Models that read a text from its beginning and predict each next token: language models.
LanguageModelConfig = DecoderConfig | RecurrentDecoderConfig


def _check(config: Any, counts: Sequence[str]) -> None:
    """
    Raises:
        ValueError: a count below 1, or a dropout that is no probability.
    """
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: must be at least 1, not {getattr(config, name)}")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"dropout: must be in [0, 1), not {config.dropout}")


def _check_heads(config: "TransformerConfig | DecoderConfig") -> None:
    """
    Raises:
        ValueError: the number of query heads is no multiple of key_value_heads.
    """
    heads = config.key_value_heads
    if heads is not None and (heads < 1 or config.num_heads % heads):
        raise ValueError(f"key_value_heads: must divide num_heads ({config.num_heads}), not {heads}")


def _check_attention(config: "TransformerConfig | DecoderConfig") -> None:
    """
    Raises:
        ValueError: a window or features without tokens or numbers, or positions that linear attention can't have.
    """
    for name, least in (("window", 1), ("global_tokens", 0), ("random_features", 1)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}: must be at least {least}, not {getattr(config, name)}")
    if config.attention is Attention.linear and config.positions is Positions.alibi:
        raise ValueError(
            "positions: alibi lowers the scores of softmax, and attention=linear has none; take rotary, sinusoidal or "
            "learned"
        )


def _fits_kernels(config: "TransformerConfig | DecoderConfig") -> bool:
    """Whether kernels on packed tokens have the model's kind of attention: they know windows, but no global tokens and
    no biases of scores."""
    has_globals = config.attention is Attention.window and config.global_tokens > 0
    return config.attention is not Attention.linear and not has_globals and config.positions is not Positions.alibi


def _layer_multiply_adds(config: "TransformerConfig | DecoderConfig") -> tuple[int, int]:
    """Multiply-adds a token: of self-attention's projections and feed-forward, and of keys and values among them."""
    # Queries, keys, values and output map between the model's width and the width of all heads together.
    widths = config.key_width + config.value_width
    query_and_output = config.d_model * config.num_heads * widths
    keys_and_values = config.d_model * config.shared_heads * widths
    products = 3 if config.activation is Activation.swiglu else 2
    return query_and_output + keys_and_values + products * config.d_model * config.d_ff, keys_and_values
