"""Files that hold what is added to a model: LoRA and its relatives, by the names of their tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from runner.describe import table
from runner.errors import escape
from runner.tensors import TensorSpec

# What the names of a dialect's tensors end with, the part that has a row or column for each rank, and which.
_DIALECTS = (
    ("LoRA (kohya)", r"\.(lora_down|lora_up|lora_mid)\.weight", "lora_down", 0),
    ("LoRA (peft)", r"\.(lora_A|lora_B)(\.\w+)?\.weight", "lora_A", 0),
    ("LoRA (diffusers)", r"[._]lora\.(down|up)\.weight", "down", 0),
    ("LoHa", r"\.(hada_w[12]_[ab]|hada_t[12])", "hada_w1_b", 0),
    ("LoKr", r"\.(lokr_w[12](_[ab])?|lokr_t2)", "lokr_w2_b", 0),
)
_COMPONENTS = (
    (r"lora_unet_|lycoris_unet_|unet\.", "unet"),
    (r"lora_transformer_|transformer\.|diffusion_model\.", "transformer"),
    (r"lora_te1?_|text_encoder\.", "text_encoder"),
    (r"lora_te2_|text_encoder_2\.", "text_encoder_2"),
    (r"lora_te3_|text_encoder_3\.", "text_encoder_3"),
)


def adapter_lines(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> list[str]:
    """What an adapter adds to which component, as a table; [] if these are no tensors of one."""
    targets: dict[tuple[str, str], set[str]] = {}
    ranks: dict[tuple[str, str], Counter[int]] = {}
    for key, spec in specs.items():
        for dialect, pattern, down, axis in _DIALECTS:
            if (match := re.search(f"{pattern}$", key)) is None:
                continue
            target = key[: match.start()]
            component = next((name for start, name in _COMPONENTS if re.match(start, target)), "other")
            targets.setdefault((component, dialect), set()).add(target)
            if match[1] == down and len(spec.shape) > axis:
                ranks.setdefault((component, dialect), Counter())[spec.shape[axis]] += 1
            break
    rows = [["component", "dialect", "targets", "rank"]]
    for place, found in sorted(targets.items()):
        rank = ", ".join(str(rank) for rank, _ in ranks.get(place, Counter()).most_common(4)) or "full"
        rows.append([*place, str(len(found)), rank])
    stated = [f"{name} {escape(text)}" for name in ("rank", "alpha") if (text := _stated(metadata, name))]
    lines = table(rows, right=(2,)) if targets else []
    return [*lines, f"  header: {', '.join(stated)}"] if lines and stated else lines


def _stated(metadata: Mapping[str, str], name: str) -> str | None:
    return metadata.get({"rank": "ss_network_dim", "alpha": "ss_network_alpha"}[name])
