"""A Whisper model under OpenAI's names: what openai/whisper and whisper.cpp load."""

from __future__ import annotations

import re

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from common.errors import UserError

_LAYER_PARTS = {
    "self_attn": "attn",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn": "cross_attn",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
_OUTSIDE_LAYERS = {
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "decoder.embed_tokens": "decoder.token_embedding",
}
_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(\w+)(?:\.(\w+_proj))?\.(weight|bias)")
OUTPUT_LAYER = "proj_out.weight"
"""OpenAI has no such tensor: its output layer is the token embedding."""


def openai_name(name: str) -> str:
    """What OpenAI calls a tensor of transformers.

    Args:
        name: "model.decoder.layers.0.encoder_attn.q_proj.weight", for example.

    Source: `WHISPER_MAPPING` in transformers' convert_openai_to_hf.py, the other way round.
    """
    name = name.removeprefix("model.")
    if match := _LAYER.fullmatch(name):
        side, number, part, projection, kind = match.groups()
        inner = f".{_PROJECTIONS[projection]}" if projection else ""
        return f"{side}.blocks.{number}.{_LAYER_PARTS[part]}{inner}.{kind}"
    module, _, kind = name.rpartition(".")
    if module.endswith("embed_positions"):
        return f"{module.partition('.')[0]}.positional_embedding"
    return f"{_OUTSIDE_LAYERS.get(module, module)}.{kind}"


def dimensions(config: WhisperConfig) -> dict[str, int]:
    """OpenAI's description of a model's shape. Source: `ModelDimensions` in openai/whisper's model.py."""
    return {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
    }


def openai_tensors(model: WhisperForConditionalGeneration) -> dict[str, torch.Tensor]:
    """A model's tensors under OpenAI's names, on the CPU.

    Raises:
        UserError: its output layer is not its token embedding, which OpenAI's runtimes take for granted.
    """
    tensors = model.state_dict()
    if not torch.equal(tensors[OUTPUT_LAYER], tensors["model.decoder.embed_tokens.weight"]):
        raise UserError(
            "the model's output layer is not its token embedding: OpenAI's runtimes can't hold such a model"
        )
    return {
        openai_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if name != OUTPUT_LAYER
    }
