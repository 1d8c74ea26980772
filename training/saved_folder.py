"""What a saved model's folder needs besides what transformers 5 writes, so that every Whisper runtime takes it.

transformers 5 puts feature extractor and tokenizer into `processor_config.json` and `tokenizer.json`. transformers 4,
the converters of CTranslate2 and whisper.cpp, and faster-whisper look for the files of before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, WhisperConfig, WhisperProcessor, WhisperTokenizer

from common.files import written_whole

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_FILES = (
    "preprocessor_config.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
"""Files that `complete_saved_folder` adds; a `normalizer.json` too, where the tokenizer came with one."""
_PROPERTIES = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
"""What tokenizer_config.json says of an added token."""
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def complete_saved_folder(folder: Path, processor: WhisperProcessor) -> None:
    """Completes a folder that transformers 5 has just saved a model and its processor to.

    Adds `ADDED_FILES`; takes out of config.json what would make an older runtime generate in another language than the
    one trained, and out of generation_config.json what is no setting of generation.

    Args:
        folder: with config.json, generation_config.json and the tokenizer's files.
        processor: what was saved there.

    Raises:
        OSError: the folder can't be written.
    """
    processor.feature_extractor.save_pretrained(folder)
    _write_tokenizer_files(folder, processor.tokenizer)
    _write_json(folder / CONFIG, _clean_config(load_json(folder / CONFIG)))
    generation = folder / GENERATION_CONFIG
    _write_json(generation, _clean_generation_config(load_json(generation)))


def _write_tokenizer_files(folder: Path, tokenizer: WhisperTokenizer) -> None:
    """The tokenizer as transformers 4 saves it: a vocabulary, its merges, and the tokens added behind it."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = description["model"]["vocab"]
    special = set(tokenizer.all_special_tokens)
    added = [token | {"special": token["content"] in special} for token in description["added_tokens"]]
    specials: dict[str, Any] = {name: str(getattr(tokenizer, name)) for name in _ROLES}
    specials |= {"additional_special_tokens": [token["content"] for token in added if token["special"]]}
    _write_json(folder / "vocab.json", dict(sorted(vocabulary.items(), key=lambda item: item[1])))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in description["model"]["merges"])
    with written_whole(folder / "merges.txt") as file:
        file.write("\n".join(["#version: 0.2", *merges, ""]).encode())
    _write_json(folder / "added_tokens.json", {t["content"]: t["id"] for t in added if t["content"] not in vocabulary})
    _write_json(folder / "special_tokens_map.json", specials)
    if normalizer := getattr(tokenizer, "english_spelling_normalizer", None):
        _write_json(folder / "normalizer.json", normalizer)
    settings = load_json(folder / TOKENIZER_CONFIG)
    settings.pop("extra_special_tokens", None)  # a list here stops transformers 4 with an AttributeError
    settings |= specials | {
        "added_tokens_decoder": {str(token["id"]): {name: token[name] for name in _PROPERTIES} for token in added},
        "clean_up_tokenization_spaces": False,
        "processor_class": "WhisperProcessor",
        "tokenizer_class": "WhisperTokenizer",
    }
    _write_json(folder / TOKENIZER_CONFIG, settings)


def _clean_config(settings: dict[str, Any]) -> dict[str, Any]:
    """Leaves generation to generation_config.json: old runtimes would prefer the Hub's forced ids, often English."""
    return {
        name: value
        for name, value in settings.items()
        if name != "forced_decoder_ids" and (name, value) != ("max_length", None)
    }


def _clean_generation_config(settings: dict[str, Any]) -> dict[str, Any]:
    """Takes out settings of the model, which loading with `dropout=…` leaves there.

    Also the mark of a file made from config.json: transformers would make it from there again, and lose the language.
    """
    foreign = WhisperConfig().to_dict().keys() - GenerationConfig().to_dict().keys() | {"_from_model_config"}
    return {name: value for name, value in settings.items() if name not in foreign}


def load_json(path: Path) -> dict[str, Any]:
    """Reads one of the folder's settings files."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
