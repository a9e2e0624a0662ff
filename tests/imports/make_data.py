"""Records data/: recipes that sd-mecha writes and mergekit reads, and a few tensors of what they make.

Needs sd-mecha 1.1.8, mergekit 0.1.5 with immutables, and a folder for whole models:
python make_data.py FOLDER
The .yaml files in data/ are written by hand, and read here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import sd_mecha
import torch
from safetensors.torch import load_file, save_file
from sd_mecha.extensions import model_configs
from sd_mecha.extensions.builtin.merge_methods import linear, ties

DATA = Path(__file__).parent / "data"
KEYS = (
    "cond_stage_model.transformer.text_model.encoder.layers.5.layer_norm1.bias",
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    "first_stage_model.decoder.conv_in.weight",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight",
    "model.diffusion_model.middle_block.1.proj_in.weight",
    "model.diffusion_model.output_blocks.2.1.conv.weight",
    "model.diffusion_model.time_embed.0.weight",
    "model.diffusion_model.out.2.bias",
)
BLOCKS = {
    "BASE": 0.1,
    **{f"IN{n:02}": n / 20 for n in range(12)},
    "M00": 0.5,
    **{f"OUT{n:02}": 1 - n / 20 for n in range(12)},
}
# Their results are too far from ours to be compared, or are refused.
TEXT_ONLY = ("blocks", "dare", "dare_default", "model_stock", "pick", "tensor_sum", "ties", "ties_extended")


def write_models(folder: Path) -> None:
    """Three models with the keys of SD1 and at most 3 rows and columns in each tensor."""
    keys = model_configs.resolve("sd1-ldm").keys()
    for seed, name in enumerate("abc", start=1):
        own, common = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(9)
        tensors = {}
        for key, metadata in keys.items():
            if key.startswith("model_ema"):
                continue
            shape = [min(size, 3) if at < 2 else size for at, size in enumerate(metadata.shape)]
            tensors[key] = torch.randn(shape, generator=common) + 0.1 * torch.randn(shape, generator=own)
        save_file(tensors, folder / f"{name}.safetensors", {"format": "pt"})


def recipes(folder: Path) -> dict[str, Any]:
    """Recipes of sd-mecha by name."""
    m = sd_mecha
    a, b, c = (m.model(str(folder / f"{name}.safetensors")) for name in "abc")
    from_a = linear.subtract(b, a), linear.subtract(c, a)
    return {
        "weighted_sum": m.weighted_sum(a, b, alpha=0.4),
        "add_difference": m.add_difference(a, b, c, alpha=0.7),
        "n_average": m.n_average(a, b, c),
        "clamp": m.add_difference(a, b, c, alpha=1.0, clamp_to_ab=True),
        "add_perpendicular": m.add_perpendicular(a, b, c, alpha=0.5),
        "ties": linear.add_difference(a, ties.ties_sum(*from_a, k=0.4), alpha=0.5),
        "ties_extended": linear.add_difference(
            a, ties.ties_sum_extended(*from_a, k=0.4, apply_stock=True), alpha=0.5
        ),
        "dare": m.add_ties_with_dare(a, b, c, alpha=0.5, apply_stock=True),
        "dare_default": m.add_ties_with_dare(a, b, c, alpha=0.5),
        "model_stock": m.n_model_stock(a, b, c),
        "slerp": m.slerp(a, b, alpha=0.3),
        "blocks": m.weighted_sum(a, b, alpha=m.convert(BLOCKS, a)),
        "train_difference": m.add_difference(a, b, c, alpha=m.train_difference_mask(a, b, c, alpha=0.8)),
        "cosine": m.add_cosine_a(a, b, alpha=0.2),
        "nested": m.weighted_sum(m.add_difference(a, b, c, alpha=0.6), m.slerp(b, c, alpha=0.25), alpha=0.35),
        "deltas": linear.add_difference(a, m.weighted_sum(*from_a, alpha=0.3), alpha=0.9),
        "median": m.geometric_median(a, b, c),
        "tensor_sum": m.tensor_sum(a, b, width=0.4, offset=0.1),
        "pick": m.weighted_sum(m.pick_component(a, "diffuser"), b, alpha=0.5) | a,
    }


def main(folder: Path) -> None:
    """Writes data/."""
    write_models(folder)
    kept = {}
    for name in "abc":
        tensors = load_file(folder / f"{name}.safetensors")
        kept |= {f"{name}/{key}": tensors[key] for key in KEYS}
    for name, recipe in recipes(folder).items():
        text = sd_mecha.serialize(recipe).replace(f"{folder}/", "")
        (DATA / f"{name}.mecha").write_text(text)
        if name not in TEXT_ONLY:
            output = folder / f"{name}.mecha.safetensors"
            sd_mecha.merge(
                recipe,
                output=str(output),
                merge_device="cpu",
                merge_dtype=torch.float64,
                output_dtype=torch.float32,
            )
            tensors = load_file(output)
            kept |= {f"{name}.mecha/{key}": tensors[key] for key in KEYS}
    for path in sorted(DATA.glob("*.yaml")):
        if path.stem == "slerp_filters":  # its filters need an architecture mergekit knows
            continue
        output = folder / path.stem
        command = ["mergekit-pytorch", str(path), str(output), "--no-cuda"]
        subprocess.run(command, cwd=folder, check=True)
        tensors = load_file(output / "model.safetensors")
        kept |= {f"{path.name}/{key}": tensors[key] for key in KEYS}
    save_file(kept, DATA / "peers.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
