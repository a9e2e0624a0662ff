"""What an architecture is to a merge: how to recognise it, its components and its blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runner.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key stands in the model.

    Attributes:
        component: in diffusers' words: unet, transformer, vae, text_encoder, ...; "other" for none of them.
        blocks: names of blocks it belongs to, the most specific first: ("TIME", "IN00").
    """

    component: str
    blocks: tuple[str, ...] = ()


BlocksOf = Callable[[re.Match[str]], tuple[str, ...]]
BlockRule = tuple[str, BlocksOf]


@dataclass(frozen=True)
class Architecture:
    """A family of models with the same components and blocks.

    Attributes:
        name: short, for records: "sd1".
        title: for people.
        modelspec: its id in the ModelSpec standard.
        resolution: of the images it was trained on, "512x512".
        main: the component that is divided into blocks: "unet" or "transformer".
        first: by layout, the weight of the main component that the image enters by.
        variants: by its input channels, what else a model of this architecture is made for.
        blocks: names of its blocks in order of depth, BASE (all but the main component) first.
        fine: names for parts of blocks or of BASE.
        prefixes: in a single file, what keys of a component begin with → the component.
        outside: fine names of the components beside the main one, component → name.
        rules: by layout, patterns for the keys inside the main component, and the blocks of a match.
        recognise: by layout, whether a model's tensors are of this architecture.
        parts: the finest division that lists of block weights have numbers for, in their order: names in
            `blocks` and `fine`; "" for a number that no tensor takes.
    """

    name: str
    title: str
    modelspec: str
    resolution: str
    main: str
    first: Mapping[str, str]
    variants: Mapping[int, str]
    blocks: tuple[str, ...]
    fine: tuple[str, ...]
    prefixes: Mapping[str, str]
    outside: Mapping[str, str]
    rules: Mapping[str, tuple[BlockRule, ...]]
    recognise: Mapping[str, Callable[[Mapping[str, TensorSpec]], bool]]
    parts: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """The components that have names here, the main one first."""
        return (self.main, *self.outside)

    @property
    def depth(self) -> tuple[str, ...]:
        """The blocks of the main component, in order."""
        beside = {"BASE", *self.outside.values()}
        return tuple(block for block in self.blocks if block not in beside)


def numbered(name: str, start: int, end: int) -> tuple[str, ...]:
    """NAME00, NAME01, ... up to but not with the end."""
    return tuple(f"{name}{number:02d}" for number in range(start, end))
