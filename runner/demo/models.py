"""The embedded default: small real diffusers pipelines, made on first use, without a network.

Six models of two architectures. Each has exactly the components, keys and block structure of Stable
Diffusion 1.5 or SDXL base at a fraction of the width, so a recipe that merges them merges the real ones.
Their weights are seeded noise, and so are their images. `photo` and `anime` are `base` plus a small
difference of their own, as fine-tunes are.

No torch, diffusers or transformers here: their import takes longer than everything below.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.demo.configs import POSITIONS, SD, SDXL, Configs
from runner.demo.shapes import Shapes, clip_shapes, unet_shapes, vae_shapes
from runner.errors import InputError, OutputError, escape, nearest

# Raised whenever the bytes of any demo model change, so that folders made before are left alone.
_REVISION = 1

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"

# A fine-tune differs from its base by noise of this share of the base's own spread.
_DIFFERENCE = 0.125

# Name → its configs, the seed of what it shares with its family, the seed of its own difference.
_MODELS: dict[str, tuple[Configs, str, str | None]] = {
    "base": (SD, "base", None),
    "photo": (SD, "base", "photo"),
    "anime": (SD, "base", "anime"),
    "sdxl_base": (SDXL, "sdxl_base", None),
    "sdxl_photo": (SDXL, "sdxl_base", "sdxl_photo"),
    "sdxl_anime": (SDXL, "sdxl_base", "sdxl_anime"),
}

DEMO_MODELS: tuple[str, ...] = tuple(_MODELS)

# A LoRA for the models that are like Stable Diffusion 1.5, as kohya's scripts name and write it.
DEMO_LORA = "lora"
_LORA_RANK, _LORA_ALPHA = 2, 1.0
_LORA_TARGETS = re.compile(r"(.+\.(attn\d\.to_(q|k|v|out\.0)|self_attn\.[qkv]_proj|mlp\.fc1))\.weight")

# Component → file of its weights, and how its shapes follow from its config.
_WEIGHTS = {
    "text_encoder": ("model.safetensors", clip_shapes),
    "text_encoder_2": ("model.safetensors", clip_shapes),
    "unet": ("diffusion_pytorch_model.safetensors", unet_shapes),
    "vae": ("diffusion_pytorch_model.safetensors", vae_shapes),
}


def demo_model(name: str, cache: Path) -> Path:
    """The folder of a demo model, or the file of the demo LoRA, made now if the cache lacks it.

    Several processes may ask at once.

    Args:
        name: one of DEMO_MODELS, or DEMO_LORA.
        cache: folder that keeps what was made; created if it is missing.

    Raises:
        InputError: there is no such demo model.
        OutputError: the cache cannot be written.
    """
    known = (*DEMO_MODELS, DEMO_LORA)
    if name not in known:
        raise InputError(
            f"demo:{escape(name)}: no such demo model{nearest(name, known)}",
            tag="MISSING",
            hint=f"there are {', '.join(known)}",
        )
    recipe = json.dumps([_REVISION, _DIFFERENCE, SD, SDXL]).encode()
    folder = cache / "demo" / hashlib.sha256(recipe).hexdigest()[:12] / name
    result = folder / "lora.safetensors" if name == DEMO_LORA else folder
    if folder.is_dir():
        return result
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            made = Path(scratch, name)
            if name == DEMO_LORA:
                made.mkdir()
                _write_safetensors(made / result.name, _lora())
            else:
                _make(name, made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process made the same bytes first
                    raise
    except OSError as error:
        raise OutputError(
            f"demo:{name}: cannot be made in {escape(str(cache))}: {error.strerror or error}",
            hint="the cache must be a folder with a few free megabytes that you may write to",
        ) from error
    return result


def _lora() -> dict[str, tuple[tuple[int, ...], bytes]]:
    """The tensors of the demo LoRA: two factors and an alpha for each layer it changes."""
    shapes: Shapes = {}
    alpha = struct.pack("<e", _LORA_ALPHA)
    alphas: dict[str, tuple[tuple[int, ...], bytes]] = {}
    components = (("unet", "lora_unet_", unet_shapes), ("text_encoder", "lora_te_", clip_shapes))
    for component, prefix, shapes_of in components:
        for key, shape in shapes_of(SD[component]).items():
            if match := _LORA_TARGETS.fullmatch(key):
                name = prefix + match[1].replace(".", "_")
                shapes[f"{name}.lora_down.weight"] = (_LORA_RANK, shape[1])
                shapes[f"{name}.lora_up.weight"] = (shape[0], _LORA_RANK)
                alphas[f"{name}.alpha"] = ((), alpha)
    return {**_tensors(shapes, "lora", None), **alphas}


def _make(name: str, folder: Path) -> None:
    """Writes all files of a demo model into a new folder."""
    configs, family, own = _MODELS[name]
    for part, config in configs.items():
        if part == "model_index":
            _write_json(folder / "model_index.json", config)
        elif part == "scheduler":
            _write_json(folder / part / "scheduler_config.json", config)
        else:
            file, shapes_of = _WEIGHTS[part]
            _write_json(folder / part / "config.json", config)
            tensors = _tensors(shapes_of(config), f"{family}/{part}", own and f"{own}/{part}")
            _write_safetensors(folder / part / file, tensors)
    for part in configs["model_index"]:
        if part.startswith("tokenizer"):
            # SDXL pads the text of its second encoder with token 0.
            _write_tokenizer(folder / part, pad=_EOS if part == "tokenizer" else "!")


def _tensors(shapes: Shapes, seed: str, own_seed: str | None) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Key → shape and float16 data: uniform noise that keeps the variance of what passes through it.

    SHAKE128 is a standard, and single additions and products of IEEE numbers are exact to the bit, so the
    bytes are the same on every machine and with every numpy.
    """
    import numpy as np

    def noise(key: str, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        data = hashlib.shake_128(key.encode(), usedforsecurity=False).digest(2 * count)
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(1 << 15)  # in [−1, 1)

    tensors = {}
    for key, shape in shapes.items():
        count = math.prod(shape)
        matrix = len(shape) > 1
        spread = np.float32(math.sqrt(3 / math.prod(shape[1:])) if matrix else 0.1)
        values = noise(f"{seed}/{key}", count) * spread
        if own_seed is not None:
            values += noise(f"{own_seed}/{key}", count) * (spread * np.float32(_DIFFERENCE))
        if not matrix and key.endswith(".weight"):  # of a norm
            values += np.float32(1)
        tensors[key] = shape, values.astype("<f2").tobytes()
    return tensors


def _write_safetensors(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], bytes]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in sorted(tensors):
        shape, data = tensors[key]
        start, end = end, end + len(data)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(tensors[key][1] for key in sorted(tensors))
        file.flush()
        os.fsync(file.fileno())


def _write_tokenizer(folder: Path, pad: str) -> None:
    """A CLIP tokenizer that knows single bytes only, in the classic files every transformers reads."""
    letters = list(_byte_letters())
    words = [*letters, *(letter + "</w>" for letter in letters), _BOS, _EOS]
    special = {"bos_token": _BOS, "eos_token": _EOS, "unk_token": _EOS, "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": POSITIONS, "do_lower_case": True}
    _write_json(folder / "vocab.json", {word: index for index, word in enumerate(words)})
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", settings | special | {"add_prefix_space": False})
    _write(folder / "merges.txt", "#version: 0.2\n")


def _byte_letters() -> Iterator[str]:
    """The printable letter by which byte-level tokenizers write each byte, in vocabulary order.

    Source: GPT-2, src/encoder.py, bytes_to_unicode: printable bytes stand for themselves, the others are
    counted up from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    yield from map(chr, printable)
    yield from (chr(0x100 + i) for i in range(0x100 - len(printable)))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
