"""The Transformer and Hugging Face's MarianMTModel are one function of their weights, in both directions."""

import pytest
import torch
from torch import Tensor, nn
from transformers import MarianMTModel

from transloom.model.config import Norm, Positions, TransformerConfig
from transloom.model.packing import Layout
from transloom.model.transformer import Transformer
from transloom.pipeline.data.tokenizer import BOS_ID, EOS_ID, PAD_ID
from transloom.pipeline.errors import UserError
from transloom.pipeline.export import marian_config, marian_weights
from transloom.pipeline.generate.beam import BeamConfig, n_best_search

VOCAB = 61
LIMIT = 30  # tokens of a translation
CONFIG = TransformerConfig(
    d_model=32, d_ff=48, num_heads=4, encoder_layers=2, decoder_layers=3, dropout=0.0, max_positions=64
)
TOLERANCE = {"rtol": 0.0, "atol": 2e-6}  # in float64, but both tables of sinusoids are rounded to float32


def ours_and_marian() -> tuple[Transformer, MarianMTModel]:
    """Both with weights of their own, in float64.

    Gains of either sign: else a random model with a tied output says its last token for ever.
    """
    torch.manual_seed(0)
    ours = Transformer(CONFIG, VOCAB).double().eval()
    marian = MarianMTModel(marian_config(CONFIG, VOCAB)).double().eval()
    with torch.no_grad():
        for model in (ours, marian):
            for name, parameter in model.named_parameters():
                if "positions" not in name:
                    spread = {"bias": 0.05, "gain": 1.0, "matrix": 0.5 * CONFIG.d_model**-0.5}[kind(name, parameter)]
                    parameter.copy_(torch.randn_like(parameter) * spread)
    return ours, marian


def kind(name: str, parameter: Tensor) -> str:
    return "bias" if name.endswith("bias") else "gain" if parameter.dim() == 1 else "matrix"


def from_marian(theirs: dict[str, Tensor], ours: Transformer) -> dict[str, Tensor]:
    """The inverse of `marian_weights`: number our elements, and see where each number goes."""
    numbers, first = {}, 0
    for name, tensor in ours.state_dict().items():
        numbers[name] = torch.arange(first, first + tensor.numel()).view(tensor.shape)
        first += tensor.numel()
    values = torch.full((first,), torch.nan, dtype=torch.float64)
    for name, places in marian_weights(numbers, CONFIG.d_model).items():
        values[places] = theirs[name]
    return {name: values[places] for name, places in numbers.items()}


def copy_to_marian(ours: Transformer, marian: MarianMTModel) -> None:
    missing, unexpected = marian.load_state_dict(marian_weights(ours.state_dict(), CONFIG.d_model), strict=False)
    own = {"final_logits_bias", "model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"}
    assert (set(missing), unexpected) == (own, [])


def copy_to_ours(marian: MarianMTModel, ours: Transformer) -> None:
    ours.load_state_dict(from_marian(marian.state_dict(), ours))


@pytest.fixture(params=[copy_to_marian, copy_to_ours])
def equal_models(request: pytest.FixtureRequest) -> tuple[Transformer, MarianMTModel]:
    ours, marian = ours_and_marian()
    if request.param is copy_to_marian:
        copy_to_marian(ours, marian)
    else:
        copy_to_ours(marian, ours)
    return ours, marian


def sentences(*lengths: int, seed: int) -> list[Tensor]:
    """Random ids, each sentence ending in </s>."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.cat((torch.randint(4, VOCAB, (length - 1,), generator=generator), torch.tensor([EOS_ID])))
        for length in lengths
    ]


def padded(parts: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PAD_ID)


@torch.no_grad()
def test_the_same_weights_give_the_same_logits(equal_models: tuple[Transformer, MarianMTModel]) -> None:
    ours, marian = equal_models
    sources, targets = sentences(5, 40, 2, 1, seed=1), sentences(30, 2, 7, 1, seed=2)
    pack = [(torch.cat(parts), Layout.of(torch.tensor([len(part) for part in parts]))) for parts in (sources, targets)]
    logits = ours(*pack[0], *pack[1]) @ ours.embedding.weight.T
    expected = marian(
        input_ids=padded(sources),
        attention_mask=padded(sources) != PAD_ID,
        decoder_input_ids=padded(targets),
    ).logits
    assert expected.std() > 0.3
    for i, mine in enumerate(logits.split([len(target) for target in targets])):
        torch.testing.assert_close(mine, expected[i, : len(mine)], **TOLERANCE)


@torch.no_grad()
def test_the_same_weights_say_the_same(equal_models: tuple[Transformer, MarianMTModel]) -> None:
    ours, marian = equal_models
    sources = sentences(*range(2, 22), seed=3)
    layout = Layout.of(torch.tensor([len(source) for source in sources]))
    decoding, limits = ours.start_decoding(torch.cat(sources), layout), torch.full((len(sources),), LIMIT)
    found = n_best_search(decoding, limits, BeamConfig(beam=1, length_penalty=0.0), BOS_ID, EOS_ID)
    hypotheses = [best for best, *_ in found]
    said = marian.generate(
        padded(sources),
        attention_mask=padded(sources) != PAD_ID,
        num_beams=1,
        do_sample=False,
        max_new_tokens=LIMIT,
        forced_eos_token_id=EOS_ID,
    )
    theirs = [row[1 : row.index(EOS_ID)] for row in said.tolist()]
    mine = [one.tokens for one in hypotheses]
    assert mine == theirs
    assert len({tuple(tokens) for tokens in mine}) > 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TransformerConfig(norm=Norm.pre), "Marian is post-norm, .* format=ctranslate2 has both"),
        (TransformerConfig(positions=Positions.learned), "not learned positions; format=ctranslate2"),
        (TransformerConfig(d_k=16), "this model's is 16; format=ctranslate2 takes any"),
    ],
)
def test_what_marian_has_not_is_refused(config: TransformerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        marian_config(config, VOCAB)
