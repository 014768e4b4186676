"""Self-attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.layers.repeated import Repeated
from worker.nn.parameters import Array
from worker.nn.shapes import BLOCK_FLOATS
from worker.nn.streams import Streams
from worker.specs import AttentionRecord

# Added to the scores of keys that are not seen: exp gives 0, and a sum of two does not overflow float32.
HIDDEN = -1e30


@lru_cache(maxsize=8)
def causal_mask(length: int, dtype: np.dtype[Any]) -> Array:
    """HIDDEN where the key comes after the query, else 0: (keys, queries), read-only."""
    mask = np.tril(np.full((length, length), HIDDEN, dtype), -1)
    mask.flags.writeable = False
    return mask


def _heads(a: Array, part: int, parts: int, heads: int) -> Array:
    """The view (B, H, L, HD) of one of the parts that lie side by side in a (B, L, parts * D)."""
    rows, length, width = a.shape
    return a.reshape(rows, length, parts, heads, width // parts // heads)[:, :, part].transpose(0, 2, 1, 3)


@final
class Attention(Layer):
    """Multi-head self-attention (Vaswani et al. 2017): y = c Wo + bo, c = a^T v, a = softmax over keys of k q^T / sqrt(HD),
    [q k v] = x Wp + bp.

    Each of H heads has HD = D / H columns of q, of k and of v. `causal`: a query sees no key behind it. With a padding index,
    none sees a key at whose position the network's input is that index: `mask_SRL`, 0 or there HIDDEN, is added to the scores.
    A query that sees no key gets zeros for c.

    Shapes: x, y (S, R, L, D) as (S, N, D), N = R L; Wp (D, 3D), bp (3D,), Wo (D, D), bo (D,); a (B, H, keys, queries), B = S R:
    what is taken over the keys runs down the rows.
    Backward: dWo = c^T dy, dbo = 1 dy, dc = dy Wo^T; dv = a dc, ds = a (v dc^T - sum over HD of c dc) / sqrt(HD), dq = ds^T k,
    dk = ds q; dWp = x^T [dq dk dv], dbp = 1 [dq dk dv], dx = [dq dk dv] Wp^T.
    Raises UserError if x has not the shape it was built for.
    """

    keeps_input = True

    def __init__(self, record: AttentionRecord, setting: Setting) -> None:
        super().__init__(setting)
        memory, dtype = setting.memory, setting.dtype
        shards, rows, (length, width), heads = setting.shards, setting.rows, setting.shapes.input_shape, record.heads
        self.length, self.width, self.heads = length, width, heads
        self.positions, self.sequences = rows * length, shards * rows
        self.projection, self.out = setting.parameters["projection"], setting.parameters["output"]
        self.projection_bias = Repeated(setting.parameters["projection_bias"], shards * self.positions, memory)
        self.out_bias = Repeated(setting.parameters["output_bias"], shards * self.positions, memory)
        self.qkv_SNE = memory.kept((shards, self.positions, 3 * width))
        self.c_SND = memory.kept((shards, self.positions, width))
        self.y = memory.output(self.output_shape)
        self.y_SND = self.y.reshape(shards, self.positions, width)
        self.looks = record.padding_index is not None
        self.mask_SRL = memory.forward_scratch((shards, rows, length)) if self.looks else None
        self.is_padding_SRL = memory.forward_scratch((shards, rows, length), np.dtype(bool)) if self.looks else None
        self.padding, self.hidden = np.array(record.padding_index or 0, dtype), np.array(HIDDEN, dtype)
        self.causal = causal_mask(length, dtype) if record.causal else None
        self.scale = np.array(1 / math.sqrt(width // heads), dtype)
        self.lowest, self.one = np.array(HIDDEN / 10, dtype), np.array(1, dtype)
        # So many heads of so many rows at a time that the scores stay in cache, unless one head alone is larger.
        self.heads_at_once = min(heads, max(1, BLOCK_FLOATS // (length * length)))
        whole = self.heads_at_once == heads
        self.rows_at_once = min(self.sequences, max(1, BLOCK_FLOATS // (heads * length * length))) if whole else 1
        self.block = (self.rows_at_once, self.heads_at_once, length, length)
        # The backward pass needs a; in evaluation it is forgotten block by block.
        self.a = (
            memory.kept((self.sequences, heads, length, length)) if setting.training else memory.forward_scratch(self.block)
        )
        self.spread = memory.forward_scratch(self.block)
        self.sums = memory.forward_scratch((self.rows_at_once, self.heads_at_once, 1, length))
        self.ones_L = memory.constant((1, length), 1)
        self.q, self.k, self.v = (_heads(self._rows(self.qkv_SNE), part, 3, heads) for part in range(3))
        self.c = _heads(self._rows(self.c_SND), 0, 1, heads)
        self.blocks = list(self._blocks())

    @classmethod
    def layout(cls, record: AttentionRecord, row: tuple[int, ...]) -> Layout | None:
        return Layout.ROWS_FIRST

    def _rows(self, a: Array) -> Array:
        return a.reshape(self.sequences, self.length, -1)

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows of all shards, and heads."""
        for row in range(0, self.sequences, self.rows_at_once):
            for head in range(0, self.heads, self.heads_at_once):
                last = min(row + self.rows_at_once, self.sequences), min(head + self.heads_at_once, self.heads)
                yield slice(row, last[0]), slice(head, last[1])

    def prepare_backward(self, dy: Array) -> Array:
        setting, memory = self.setting, self.setting.memory
        assert setting.gradients is not None
        shards = setting.shards
        self.gradients = setting.gradients
        self.ones_N = memory.constant((self.positions,), 1)
        self.ones_H1 = memory.constant((self.width // self.heads, 1), 1)
        self.dc_SND = memory.backward_scratch((shards, self.positions, self.width))
        self.dqkv_SNE = memory.backward_scratch((shards, self.positions, 3 * self.width))
        self.ds, self.dspread = memory.backward_scratch(self.block), memory.backward_scratch(self.block)
        self.products_SM1 = memory.backward_scratch((shards, self.positions * self.heads, 1))
        # (B, L, H) as (B, H, 1, L)
        products = self.products_SM1.reshape(self.sequences, self.length, self.heads)
        self.products = products.transpose(0, 2, 1)[:, :, None]
        self.dc = _heads(self._rows(self.dc_SND), 0, 1, self.heads)
        self.dq, self.dk, self.dv = (_heads(self._rows(self.dqkv_SNE), part, 3, self.heads) for part in range(3))
        if not setting.needs_input_gradient:
            return dy
        self.dx = memory.input_gradient(self.input_shape)
        self.dx_SND = self.dx.reshape(shards, self.positions, self.width)
        return self.dx

    def look(self, network_input: Array) -> None:
        assert self.mask_SRL is not None and self.is_padding_SRL is not None
        np.equal(network_input, self.padding, out=self.is_padding_SRL)
        np.copyto(self.mask_SRL, self.is_padding_SRL)
        np.multiply(self.mask_SRL, self.hidden, out=self.mask_SRL)

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        self.x_SND = x.reshape(self.setting.shards, self.positions, self.width)
        np.matmul(self.x_SND, self.projection, out=self.qkv_SNE)
        qkv, y = self.qkv_SNE.reshape(-1, 3 * self.width), self.y.reshape(-1, self.width)
        self.projection_bias.add(qkv, qkv)
        for rows, heads in self.blocks:
            size = rows.stop - rows.start, heads.stop - heads.start
            a = self.a[rows, heads] if self.setting.training else self.a[: size[0], : size[1]]
            np.matmul(self.k[rows, heads], self.q[rows, heads].transpose(0, 1, 3, 2), out=a)
            self._softmax(a, rows, self.spread[: size[0], : size[1]], self.sums[: size[0], : size[1]])
            np.matmul(a.transpose(0, 1, 3, 2), self.v[rows, heads], out=self.c[rows, heads])
        np.matmul(self.c_SND, self.out, out=self.y_SND)
        self.out_bias.add(y, y)
        return self.y

    def _softmax(self, a: Array, rows: slice, spread: Array, sums: Array) -> None:
        """Of the scores, in place. What is smaller is spread out first: NumPy would do so into memory that it allocates."""
        np.multiply(a, self.scale, out=a)
        if self.causal is not None:
            np.copyto(spread, self.causal)
            np.add(a, spread, out=a)
        if self.mask_SRL is not None:
            np.copyto(spread, self.mask_SRL.reshape(self.sequences, 1, self.length, 1)[rows])
            np.add(a, spread, out=a)
        np.maximum.reduce(a, axis=2, keepdims=True, out=sums)
        if self.mask_SRL is not None:
            # Where nothing is seen, everything stays far below this, and exp gives 0.
            np.maximum(sums, self.lowest, out=sums)
        np.copyto(spread, sums)
        np.subtract(a, spread, out=a)
        np.exp(a, out=a)
        # A product for each head by itself: it does not depend on the block.
        np.matmul(self.ones_L, a, out=sums)
        if self.mask_SRL is not None:
            # The largest of what is seen gave 1: only the sum of nothing is smaller.
            np.maximum(sums, self.one, out=sums)
        np.reciprocal(sums, out=sums)
        np.copyto(spread, sums)
        np.multiply(a, spread, out=a)

    def backward(self, dy: Array) -> Array:
        shards, c_SND, dc_SND, dqkv_SNE = self.setting.shards, self.c_SND, self.dc_SND, self.dqkv_SNE
        dy_SND = dy.reshape(shards, self.positions, self.width)
        np.matmul(c_SND.transpose(0, 2, 1), dy_SND, out=self.gradients["output"])
        np.matmul(self.ones_N, dy_SND, out=self.gradients["output_bias"])
        np.matmul(dy_SND, self.out.T, out=dc_SND)
        # The sum over keys of a da is that over a head's columns of c dc, which are fewer; c is not needed any more.
        np.multiply(c_SND, dc_SND, out=c_SND)
        np.matmul(c_SND.reshape(shards, self.positions * self.heads, -1), self.ones_H1, out=self.products_SM1)
        for rows, heads in self.blocks:
            a, dc = self.a[rows, heads], self.dc[rows, heads]
            ds, spread = self.ds[: a.shape[0], : a.shape[1]], self.dspread[: a.shape[0], : a.shape[1]]
            np.matmul(a, dc, out=self.dv[rows, heads])
            np.matmul(self.v[rows, heads], dc.transpose(0, 1, 3, 2), out=ds)
            np.copyto(spread, self.products[rows, heads])
            np.subtract(ds, spread, out=ds)
            np.multiply(ds, a, out=ds)
            np.multiply(ds, self.scale, out=ds)
            np.matmul(ds.transpose(0, 1, 3, 2), self.k[rows, heads], out=self.dq[rows, heads])
            np.matmul(ds, self.q[rows, heads], out=self.dk[rows, heads])
        np.matmul(self.x_SND.transpose(0, 2, 1), dqkv_SNE, out=self.gradients["projection"])
        np.matmul(self.ones_N, dqkv_SNE, out=self.gradients["projection_bias"])
        if not self.setting.needs_input_gradient:
            return dy
        np.matmul(dqkv_SNE, self.projection.T, out=self.dx_SND)
        return self.dx
