"""Model folders as people have them, made from the tiny checkpoint: old, English-only, distilled, extended, …"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

REMOVED: Any = object()
"""Value that takes a key out of a JSON file."""


def edit_json(path: Path, **changes: Any) -> None:
    """Changes top-level keys of a JSON file; `REMOVED` takes one out."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in content.items() if value is not REMOVED}
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


class ModelFolders:
    """Makes a model folder by name: `ModelFolders(tiny, to)("en")`."""

    NAMES = ("tiny", "hub", "old2022", "en", "old_en", "noyue", "ts", "distil", "added_ok", "tuned")

    def __init__(self, tiny: Path, to: Path) -> None:
        """
        Args:
            tiny: the tiny checkpoint.
            to: folder for the copies.
        """
        self._tiny, self._to = tiny, to
        tokenizer = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
        self._bpe, self._added = tokenizer["model"], tokenizer["added_tokens"]
        self.ids: dict[str, int] = self._bpe["vocab"] | {token["content"]: token["id"] for token in self._added}

    def __call__(self, name: str) -> Path:
        """The folder of this name; made when it is first asked for."""
        folder = self._to / name
        if not folder.exists():
            shutil.copytree(self._tiny, folder)
            getattr(self, f"_make_{name}")(folder)
        return folder

    def _make_tiny(self, folder: Path) -> None:
        """As it is."""

    def _make_hub(self, folder: Path) -> None:
        """As openai/whisper-* on the Hub: forced ids of English in both configs, weights in float16."""
        forced = [[1, self.ids["<|en|>"]], [2, self.ids["<|transcribe|>"]], [3, self.ids["<|notimestamps|>"]]]
        weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        edit_json(folder / "config.json", dtype="float16", forced_decoder_ids=forced, max_length=448)
        edit_json(folder / "generation_config.json", forced_decoder_ids=[[1, None], *forced[1:2]])

    def _make_old2022(self, folder: Path) -> None:
        """As fine-tuned in 2022: no generation_config.json, no tokenizer.json, the slow tokenizer's files instead."""
        (folder / "tokenizer.json").unlink()
        (folder / "generation_config.json").unlink()
        vocab = self._bpe["vocab"]
        contents = {
            "vocab.json": vocab,
            "added_tokens.json": {t["content"]: t["id"] for t in self._added if t["content"] not in vocab},
            "normalizer.json": {},
            "tokenizer_config.json": {"tokenizer_class": "WhisperTokenizer", "pad_token": "<|endoftext|>"},
        }
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        merges = "\n".join(" ".join(merge) for merge in self._bpe["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
        edit_json(folder / "config.json", forced_decoder_ids=None, suppress_tokens=[], max_length=448)

    def _make_en(self, folder: Path) -> None:
        """English-only, as openai/whisper-*.en on the Hub."""
        forced = [[1, self.ids["<|notimestamps|>"]]]
        edit_json(folder / "config.json", forced_decoder_ids=forced, max_length=448)
        edit_json(
            folder / "generation_config.json",
            is_multilingual=False, lang_to_id=REMOVED, task_to_id=REMOVED, forced_decoder_ids=forced,
        )  # fmt: skip

    def _make_old_en(self, folder: Path) -> None:
        """English-only from before generation_config.json: known by the size of its vocabulary alone."""
        (folder / "generation_config.json").unlink()
        edit_json(folder / "config.json", vocab_size=51864)
        weights = load_file(folder / "model.safetensors")
        name = "model.decoder.embed_tokens.weight"
        rows = weights[name]
        weights[name] = torch.cat([rows, torch.zeros(51864 - len(rows), rows.shape[1])])
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def _make_noyue(self, folder: Path) -> None:
        """99 languages, as all models before large-v3: no token for Cantonese, and all ids behind it one less."""
        yue = self.ids["<|yue|>"]

        def shifted(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: shifted(item) for key, item in value.items()}
            if isinstance(value, list):
                return [shifted(item) for item in value]
            return value - 1 if isinstance(value, int) and not isinstance(value, bool) and value > yue else value

        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        kept = [token for token in self._added if token["id"] != yue]
        edit_json(
            folder / "tokenizer.json",
            added_tokens=[token | {"id": shifted(token["id"])} for token in kept],
            post_processor=None,
            model=tokenizer["model"],
        )
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        names = [name for name in config.get("extra_special_tokens", []) if name != "<|yue|>"]
        edit_json(folder / "tokenizer_config.json", extra_special_tokens=names)
        generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        del generation["lang_to_id"]["<|yue|>"]
        names = ["lang_to_id", "task_to_id", "suppress_tokens", "no_timestamps_token_id", "prev_sot_token_id"]
        edit_json(folder / "generation_config.json", **{name: shifted(generation[name]) for name in names})
        weights = load_file(folder / "model.safetensors")
        name = "model.decoder.embed_tokens.weight"
        weights[name] = torch.cat([weights[name][:yue], weights[name][yue + 1 :]])
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        edit_json(folder / "config.json", vocab_size=len(weights[name]))

    def _make_ts(self, folder: Path) -> None:
        """Writes timestamps by default."""
        edit_json(folder / "generation_config.json", return_timestamps=True)

    def _make_distil(self, folder: Path) -> None:
        """One decoder layer, as distilled models have fewer."""
        model = WhisperForConditionalGeneration.from_pretrained(folder)
        model.model.decoder.layers = model.model.decoder.layers[:1]
        model.config.decoder_layers = 1
        model.save_pretrained(folder)

    def _make_added_ok(self, folder: Path) -> None:
        """Two words were added to the vocabulary, and rows to the embeddings."""
        tokenizer = WhisperTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["six four", "zero three"])
        tokenizer.save_pretrained(folder)
        model = WhisperForConditionalGeneration.from_pretrained(folder)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(folder)

    def _make_tuned(self, folder: Path) -> None:
        """Fine-tuned to another language before, which is saved with the tokenizer and the generation config."""
        WhisperTokenizer.from_pretrained(folder, language="german", task="translate").save_pretrained(folder)
        edit_json(folder / "generation_config.json", language="german", task="translate")
