"""The buffer layout of a pass: arrays whose lives do not overlap share memory; it is made once and then only used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from worker.nn.parameters import ALIGNMENT_BYTES, Array, aligned_zeros


@final
@dataclass(slots=True)
class Life:
    """An array of the layout: its size, the first and the last moment at which it is used, and where it was placed."""

    size_bytes: int
    first: int
    last: int
    offset: int = 0


@final
class Arena:
    """Hands out arrays twice, in the same order: first to measure their lives, then, after `place`, for use.

    While it measures, every array is apart; the system gives memory to none of them, since nobody writes.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.lives: list[Life] = []
        self._measured: dict[int, Life] = {}
        self._apart: list[Array] = []
        self._constants: dict[tuple[float, Any], Array] = {}
        self._memory: Array | None = None
        self._next = 0
        self.size_bytes = 0

    @property
    def placed(self) -> bool:
        """Whether arrays have their places."""
        return self._memory is not None

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None, first: int, last: int) -> Array:
        """An array that is used from `first` to `last`, both included."""
        kind = self.dtype if dtype is None else np.dtype(dtype)
        size_bytes = -(-math.prod(shape) * kind.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if self._memory is None:
            apart = np.empty(shape, kind)
            life = Life(size_bytes, first, last)
            self.lives.append(life)
            self._apart.append(apart)
            self._measured[id(apart)] = life
            return apart
        life = self.lives[self._next]
        self._next += 1
        part = self._memory[life.offset : life.offset + math.prod(shape) * kind.itemsize]
        return part.view(kind).reshape(shape)

    def outside(self, shape: tuple[int, ...]) -> Array:
        """An array that stands for one of somebody else's; nothing is ever in it."""
        return np.empty(shape, self.dtype)

    def use(self, array: Array, moment: int) -> None:
        """Says that an array, or a view of one, is used at a moment; arrays of others are passed over."""
        root: Any = array
        while root is not None:
            life = self._measured.get(id(root))
            if life is not None:
                life.first, life.last = min(life.first, moment), max(life.last, moment)
                return
            root = root.base

    def constant(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any] | None) -> Array:
        """An array full of `value`, a view of one that all who ask for the number share; it cannot be written."""
        kind = self.dtype if dtype is None else np.dtype(dtype)
        size = math.prod(shape)
        full = self._constants.get((value, kind))
        if full is None or full.size < size:
            full = aligned_zeros((size,), kind)
            full.fill(value)
            full.flags.writeable = False
            self._constants[value, kind] = full
        return full[:size].reshape(shape)

    def place(self) -> None:
        """Gives every array its place, the largest first, each at the lowest offset that is free for its whole life."""
        placed: list[Life] = []
        size_bytes = 0
        for life in sorted(self.lives, key=lambda life: -life.size_bytes):
            offset = 0
            for other in sorted((o for o in placed if o.first <= life.last and life.first <= o.last), key=lambda o: o.offset):
                if offset + life.size_bytes <= other.offset:
                    break
                offset = max(offset, other.offset + other.size_bytes)
            life.offset = offset
            placed.append(life)
            size_bytes = max(size_bytes, offset + life.size_bytes)
        self._apart.clear()
        self._measured.clear()
        self.size_bytes = size_bytes
        self._memory = aligned_zeros((size_bytes,), np.uint8)


@final
class Tenancy:
    """The arena as a layer sees it, which runs forward at one moment and backward at another (never, where that is None)."""

    def __init__(self, arena: Arena, forward: int, backward: int | None) -> None:
        self._arena, self._forward = arena, forward
        self._backward = forward if backward is None else backward

    def output(self, shape: tuple[int, ...]) -> Array:
        return self._arena.array(shape, None, self._forward, self._forward)

    def kept(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Array:
        return self._arena.array(shape, dtype, self._forward, self._backward)

    def forward_scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Array:
        return self._arena.array(shape, dtype, self._forward, self._forward)

    def backward_scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Array:
        return self._arena.array(shape, dtype, self._backward, self._backward)

    def input_gradient(self, shape: tuple[int, ...]) -> Array:
        return self._arena.array(shape, None, self._backward, self._backward)

    def constant(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any] | None = None) -> Array:
        return self._arena.constant(shape, value, dtype)
