"""A trained model in the formats of other programs: CTranslate2; Hugging Face's Marian, Pegasus, GPT-2 and Llama."""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from transloom.model.config import Norm, Positions, TransformerConfig
from transloom.model.decoder_only import DecoderOnly
from transloom.model.positions import sinusoids
from transloom.model.transformer import Transformer
from transloom.pipeline.data.tokenizer import BOS_ID, EOS_ID, MODEL_FILE, PAD_ID, UNK_ID
from transloom.pipeline.disk import explain_full_disk
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.huggingface import is_huggingface, write_huggingface
from transloom.pipeline.huggingface_tokenizer import write_huggingface_tokenizer
from transloom.pipeline.model_folder import OTHER_TASKS, is_language_model, load_language_model, read_about


class Format(Enum):
    """Whose files to write."""

    ctranslate2 = "ctranslate2"
    huggingface = "huggingface"


class Quantization(Enum):
    """How CTranslate2's file holds the matrices."""

    float32 = "float32"
    int8 = "int8"


def export(model: Path, folder: Path, to: Format, quantization: Quantization = Quantization.float32) -> None:
    """Writes the model folder `model` in another format into `folder`, which is whole or absent afterwards.

    Raises:
        UserError: the folder has files in it, a package is missing, or the format has no such model.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is there already: name a folder that is empty or does not exist")
    if to is Format.huggingface and quantization is not Quantization.float32:
        raise UserError(f"quantization={quantization.value}: only format=ctranslate2 has it")
    _refuse_other_tasks(model, to)
    write = _language_model(model, to) if is_language_model(model) else _translator(model, to, quantization)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    with explain_full_disk(folder):
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            os.rename(temporary, folder)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise UserError(f"can't write {folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _refuse_other_tasks(model: Path, to: Format) -> None:
    """
    Raises:
        UserError: the model is one of those that no format is written of.
    """
    task = None if is_huggingface(model) else read_about(model).get("task")
    if task in OTHER_TASKS:
        raise UserError(
            f"format={to.value}: {model} is of task={task}, which no format here has; its folder is all that "
            f"{'transloom classify' if task == 'classification' else 'train.initial'} needs"
        )


def _language_model(model: Path, to: Format) -> Callable[[Path], None]:
    """What writes a language model into a folder."""
    if to is not Format.huggingface:
        raise UserError(f"format={to.value}: {model} is a language model, for which there is format=huggingface alone")
    loaded = load_language_model(model, torch.device("cpu"), torch.float32)
    if not isinstance(loaded.model, DecoderOnly):
        raise UserError(f"{model}: only a Transformer can be exported; no form of Hugging Face's is an LSTM")
    decoder, config, end = loaded.model, loaded.model.config, loaded.tokenizer.end_of_text

    def write(folder: Path) -> None:
        token_ids = {"bos_token_id": end, "eos_token_id": end}
        write_huggingface(folder, config, decoder.vocab_size, decoder.state_dict(), token_ids)
        write_huggingface_tokenizer(model, loaded.tokenizer, config.max_positions, folder)

    return write


def _translator(model: Path, to: Format, quantization: Quantization) -> Callable[[Path], None]:
    """What writes a translation model into a folder."""
    translator = Translator.load(model, torch.device("cpu"), torch.float32)
    transformer = translator.model
    if not isinstance(transformer, Transformer):
        raise UserError(f"{model}: only a Transformer can be exported; CTranslate2 and Marian have no recurrent models")
    if not transformer.config.is_of_the_paper:
        raise UserError(
            f"{model}: only the paper's layers can be exported; Marian has neither RMS normalisation, SwiGLU or GELU, "
            "rotary positions or ALiBi, windows or linear attention, shared heads of keys nor layers without biases; "
            "and separate embeddings are not exported"
        )

    def write(folder: Path) -> None:
        if to is Format.ctranslate2:
            _write_ctranslate2(transformer, translator.tokenizer.pieces(), folder, quantization)
            _save_tokenizer(model / MODEL_FILE, folder / MODEL_FILE)
        else:
            _write_huggingface_translator(transformer, folder)
            _write_marian_tokenizer(translator, model / MODEL_FILE, folder)

    return write


def _save_tokenizer(source: Path, *files: Path) -> None:
    """Copies of a tokenizer.model for programs that give it text as it comes: ours is given single spaces."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(source.read_bytes())  # pyright: ignore
    proto.normalizer_spec.remove_extra_whitespaces = True
    for file in files:
        file.write_bytes(proto.SerializeToString())


def _package(name: str, needed_for: Format) -> ModuleType:
    try:
        return __import__(name)
    except ImportError as error:
        raise UserError(
            f"format={needed_for.value} needs the package {name} ({error}). Install it: pip install {name}"
        ) from None


# CTranslate2 ---------------------------------------------------------------------------------------------------------

# Our modules within a layer, and what CTranslate2 calls them. Its joined projections are ours.
_CTRANSLATE2 = {
    "self_attention.query_key_value": "self_attention/linear_0",
    "self_attention.output": "self_attention/linear_1",
    "around_attention.norm": "self_attention/layer_norm",
    "around_self_attention.norm": "self_attention/layer_norm",
    "cross_attention.query": "attention/linear_0",
    "cross_attention.key_value": "attention/linear_1",
    "cross_attention.output": "attention/linear_2",
    "around_cross_attention.norm": "attention/layer_norm",
    "feed_forward.inner": "ffn/linear_0",
    "feed_forward.outer": "ffn/linear_1",
    "around_feed_forward.norm": "ffn/layer_norm",
}


def _write_ctranslate2(model: Transformer, pieces: list[str], folder: Path, quantization: Quantization) -> None:
    _package("ctranslate2", Format.ctranslate2)
    from ctranslate2.specs import transformer_spec
    from ctranslate2.specs.model_spec import index_spec

    config = model.config
    if config.key_width != config.value_width:
        raise UserError("model.d_v: neither format has values of another width than keys")
    shape = {"pre_norm": config.norm is Norm.pre, "head_dim": config.key_width}
    spec: Any = transformer_spec.TransformerSpec(  # its fields are declared to be None
        transformer_spec.TransformerEncoderSpec(config.encoder_layers, config.num_heads, **shape),
        transformer_spec.TransformerDecoderSpec(config.decoder_layers, config.num_heads, **shape),
    )
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    embedding = weights.pop("embedding.weight")
    places = weights.pop("learned_positions.weight", None)
    if places is None:  # CTranslate2's own sinusoids have other frequencies, and begin at position 1
        places = sinusoids(config.max_positions, config.d_model).numpy()
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = spec.decoder.projection.weight = embedding
    spec.encoder.position_encodings.encodings = spec.decoder.position_encodings.encodings = places
    for name, array in weights.items():
        module, kind = name.rsplit(".", 1)
        if module in ("encoder_norm", "decoder_norm"):
            path = module.replace("_norm", "/layer_norm")
        else:
            side, layer, part = module.split(".", 2)
            path = f"{side}/layer_{layer}/{_CTRANSLATE2[part]}"
        if path.endswith("layer_norm"):
            kind = {"weight": "gamma", "bias": "beta"}[kind]
        setattr(index_spec(spec, path), kind, array)

    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.add_source_eos = True  # its <unk>, <s> and </s> and the decoder's start <s> are ours by default
    spec.validate()
    spec.optimize(quantization=quantization.value)
    spec.save(str(folder))


# Hugging Face --------------------------------------------------------------------------------------------------------

# Our modules within a layer that read the model's dimensions, and the parts of each in Marian.
_MARIAN_READERS = {
    "self_attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "cross_attention.query": ("encoder_attn.q_proj",),
    "cross_attention.key_value": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "feed_forward.inner": ("fc1",),
}
# Those that write them.
_MARIAN_WRITERS = {
    "self_attention.output": "self_attn.out_proj",
    "cross_attention.output": "encoder_attn.out_proj",
    "feed_forward.outer": "fc2",
    "around_attention.norm": "self_attn_layer_norm",
    "around_self_attention.norm": "self_attn_layer_norm",
    "around_cross_attention.norm": "encoder_attn_layer_norm",
    "around_feed_forward.norm": "final_layer_norm",
}
SPECIAL_IDS: dict[str, Any] = {
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "forced_eos_token_id": EOS_ID,
    "decoder_start_token_id": BOS_ID,
}


def marian_weights(weights: Mapping[str, Tensor], d_model: int) -> dict[str, Tensor]:
    """A sinusoidal Transformer's state under the names of Hugging Face's MarianMTModel, or where it is pre-norm of
    PegasusForConditionalGeneration, which is Marian with a normalisation before each sublayer and behind each stack.

    Their sinusoids are all sines, then all cosines, where ours alternate. So the model's d_model dimensions are put
    into another order wherever they are read or written, which changes no result.
    """
    order = torch.cat((torch.arange(0, d_model, 2), torch.arange(1, d_model, 2)))
    theirs = {}
    for name, tensor in weights.items():
        if name == "embedding.weight":
            theirs["model.shared.weight"] = tensor[:, order]
            continue
        if name.startswith(("encoder_norm.", "decoder_norm.")):
            theirs[f"model.{name.replace('_norm', '.layer_norm')}"] = tensor[order]
            continue
        side, layer, path = name.split(".", 2)
        module, kind = path.rsplit(".", 1)
        if module in _MARIAN_READERS:
            names = _MARIAN_READERS[module]
            parts = (tensor[:, order] if kind == "weight" else tensor).chunk(len(names))
        else:
            names, parts = (_MARIAN_WRITERS[module],), (tensor[order],)
        for their_module, part in zip(names, parts, strict=True):
            theirs[f"model.{side}.layers.{layer}.{their_module}.{kind}"] = part.contiguous()
    for alias in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        theirs[alias] = theirs["model.shared.weight"]
    return theirs


def marian_config(config: TransformerConfig, vocab_size: int):
    """The MarianConfig of a model of this shape.

    Raises:
        UserError: transformers is missing, or Marian has no such model.
    """
    _package("transformers", Format.huggingface)
    from transformers import MarianConfig

    if config.norm is Norm.pre:
        raise UserError("format=huggingface: Marian is post-norm, this model is pre-norm; format=ctranslate2 has both")
    return MarianConfig(**_shape(config, vocab_size), **SPECIAL_IDS)


def pegasus_config(config: TransformerConfig, vocab_size: int):
    """The PegasusConfig of a pre-norm model of this shape.

    Raises:
        UserError: transformers is missing, or Pegasus has no such model.
    """
    _package("transformers", Format.huggingface)
    from transformers import PegasusConfig

    if config.norm is Norm.post:
        raise UserError("format=huggingface: Pegasus is pre-norm, this model is post-norm; format=ctranslate2 has both")
    return PegasusConfig(**_shape(config, vocab_size), **SPECIAL_IDS)


def _shape(config: TransformerConfig, vocab_size: int) -> dict[str, Any]:
    """What the configurations of Marian and Pegasus both say of a model.

    Raises:
        UserError: neither has such a model.
    """
    if config.positions is Positions.learned:
        raise UserError(
            "format=huggingface: Marian and Pegasus have sinusoids, not learned positions; format=ctranslate2 has both"
        )
    if {config.num_heads * config.key_width, config.num_heads * config.value_width} != {config.d_model}:
        raise UserError(
            f"format=huggingface: the d_k of Marian and Pegasus is d_model / num_heads, this model's is "
            f"{config.key_width}; format=ctranslate2 takes any"
        )
    return {
        "vocab_size": vocab_size,
        "d_model": config.d_model,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.d_ff,
        "decoder_ffn_dim": config.d_ff,
        "activation_function": "relu",
        "scale_embedding": True,
        "dropout": config.dropout,
        "max_position_embeddings": config.max_positions,
    }


def huggingface_translator(model: Transformer) -> Any:
    """A MarianMTModel, or for a pre-norm model a PegasusForConditionalGeneration, with the weights of a model.

    Raises:
        UserError: transformers is missing, or has no such model.
    """
    _package("transformers", Format.huggingface)
    from transformers import MarianMTModel, PegasusForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of a second's work
    if model.config.norm is Norm.pre:
        theirs: Any = PegasusForConditionalGeneration(pegasus_config(model.config, model.vocab_size))
    else:
        theirs = MarianMTModel(marian_config(model.config, model.vocab_size))
    # What its state has beyond ours, it makes itself: the sinusoids, and a bias of zeros on the logits.
    keys = theirs.load_state_dict(marian_weights(model.state_dict(), model.config.d_model), strict=False)
    assert not keys.unexpected_keys, keys
    return theirs


def _write_huggingface_translator(model: Transformer, folder: Path) -> None:
    theirs = huggingface_translator(model)
    from transformers import GenerationConfig

    paper = BeamConfig()
    theirs.generation_config = GenerationConfig(
        max_length=model.config.max_positions,
        num_beams=paper.beam,
        length_penalty=paper.length_penalty,
        early_stopping=True,  # ends with as many hypotheses as the beam is wide, as our search does
        **SPECIAL_IDS,
    )
    theirs.save_pretrained(folder)


def _write_marian_tokenizer(translator: Translator, source: Path, folder: Path) -> None:
    from transformers import MarianTokenizer

    pieces, about = translator.tokenizer.pieces(), translator.about
    source_spm, target_spm, vocab = folder / "source.spm", folder / "target.spm", folder / "vocab.json"
    _save_tokenizer(source, source_spm, target_spm)
    write_json(vocab, {piece: i for i, piece in enumerate(pieces)})
    with warnings.catch_warnings(action="ignore"):  # it recommends sacremoses, which it does not use
        tokenizer = MarianTokenizer(
            str(source_spm),
            str(target_spm),
            str(vocab),
            source_lang=about.get("source_language"),
            target_lang=about.get("target_language"),
            bos_token=pieces[BOS_ID],
            eos_token=pieces[EOS_ID],
            pad_token=pieces[PAD_ID],
            unk_token=pieces[UNK_ID],
            model_max_length=about["model"]["max_positions"],
            clean_up_tokenization_spaces=False,
            split_special_tokens=True,  # </s> in a text is text
        )
    tokenizer.save_pretrained(folder)
