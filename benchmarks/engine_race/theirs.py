"""The other side: the same network in PyTorch eager, with fused momentum. Runs in an environment of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.engine_race.cases import BY_NAME, MOMENTUM, Case, Layers, Net
from benchmarks.turns import MemoryGauge, cpu_seconds, serve

# Ours has the gates input, forget, output, candidate; PyTorch has the candidate third.
GATES = (0, 1, 3, 2)


@final
class Positions(nn.Module):
    """A learned vector for each position."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, width))

    def forward(self, x: Any) -> Any:
        return x + self.weight


@final
class Attention(nn.Module):
    """Multi-head self-attention by `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.projection, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        rows, length, width = x.shape
        q, k, v = self.projection(x).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.output(y.transpose(1, 2).reshape(rows, length, width))


@final
class LastState(nn.Module):
    """An LSTM's last state, of rows that lie row by row or position by position."""

    def __init__(self, inputs: int, units: int, rows_first: bool) -> None:
        super().__init__()
        self.rows_first = rows_first
        self.lstm = nn.LSTM(inputs, units, batch_first=rows_first)
        # Ours has one bias; a second one would move the sum of both twice as fast.
        nn.init.zeros_(self.lstm.bias_hh_l0)
        self.lstm.bias_hh_l0.requires_grad = False

    def forward(self, x: Any) -> Any:
        y = self.lstm(x)[0]
        return y[:, -1] if self.rows_first else y[-1]


@final
class Residual(nn.Module):
    """layers(x) + shortcut(x)."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.layers, self.shortcut = layers, shortcut

    def forward(self, x: Any) -> Any:
        return self.layers(x) + self.shortcut(x)


@final
class Builder:
    """Makes modules of the layers of a job file, with the weights of the same names; these are in our public layout."""

    def __init__(self, net: Net, tensors: dict[str, Any], rows_first: bool) -> None:
        self._net, self._tensors, self._rows_first = net, tensors, rows_first

    def build(self, layers: Layers, place: str = "") -> nn.Module:
        """The layers in turn."""
        modules: list[nn.Module] = []
        for number, layer in enumerate(layers):
            ((kind, options),) = layer.items()
            flattened = number > 0 and "flatten" in layers[number - 1]
            modules.append(getattr(self, f"_{kind}")(options, f"{place}{number}.{kind}", flattened))
        return nn.Sequential(*modules)

    def _get(self, name: str) -> Any:
        return torch.from_numpy(np.ascontiguousarray(self._tensors[name]))

    def _linear(self, weight: Any, bias: Any) -> nn.Module:
        linear = nn.Linear(*weight.shape)
        _set(linear.weight, weight.T)
        _set(linear.bias, bias)
        return linear

    def _dense(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        weight = self._get(f"{place}.weight")
        if flattened:  # ours has channels last in a row, PyTorch first
            channels = _last_filters(self._net.layers)
            weight = weight.reshape(-1, channels, options["units"]).transpose(0, 1).reshape(-1, options["units"])
        return self._linear(weight, self._get(f"{place}.bias"))

    def _conv2d(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        weight = self._get(f"{place}.weight").permute(3, 2, 0, 1)
        padding = options["padding"].get("explicit", {"top": 0})["top"]
        stride, bias = options["stride"]["height"], options["bias"]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding, bias=bias)
        _set(conv.weight, weight)
        if bias:
            _set(conv.bias, self._get(f"{place}.bias"))
        return conv

    def _batch_norm(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        return nn.BatchNorm2d(len(self._tensors[f"{place}.scale"]), eps=1e-5, momentum=0.1)

    def _layer_norm(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        return nn.LayerNorm(len(self._tensors[f"{place}.scale"]), eps=1e-5)

    def _embedding(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        embedding = nn.Embedding(options["vocabulary"], options["width"])
        _set(embedding.weight, self._get(f"{place}.weight"))
        return embedding

    def _positions(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        weight = self._get(f"{place}.weight")
        positions = Positions(*weight.shape)
        _set(positions.weight, weight)
        return positions

    def _attention(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        weight = self._get(f"{place}.output")
        attention = Attention(len(weight), options["heads"], options["causal"])
        attention.projection = self._linear(self._get(f"{place}.projection"), self._get(f"{place}.projection_bias"))
        attention.output = self._linear(weight, self._get(f"{place}.output_bias"))
        return attention

    def _lstm(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        units = options["units"]
        weight, bias = self._get(f"{place}.weight"), self._get(f"{place}.bias")
        inputs = len(weight) - units
        last = LastState(inputs, units, self._rows_first)
        in_order = weight.reshape(-1, 4, units)[:, GATES].reshape(-1, 4 * units).T
        _set(last.lstm.weight_ih_l0, in_order[:, :inputs])
        _set(last.lstm.weight_hh_l0, in_order[:, inputs:])
        _set(last.lstm.bias_ih_l0, bias.reshape(4, units)[GATES, :].reshape(-1))
        return last

    def _residual(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        layers = self.build(options["layers"], f"{place}.layers.")
        shortcut = options.get("shortcut")
        return Residual(layers, self.build(shortcut, f"{place}.shortcut.") if shortcut else nn.Identity())

    def _max_pool(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        return nn.MaxPool2d(options["window"]["height"])

    def _global_pool(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def _flatten(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        return nn.Flatten()

    def _relu(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        return nn.ReLU()

    def _gelu(self, options: dict[str, Any], place: str, flattened: bool) -> nn.Module:
        return nn.GELU()


def _set(parameter: Any, value: Any) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def _last_filters(layers: Layers) -> int:
    filters: int = [layer["conv2d"]["filters"] for layer in layers if "conv2d" in layer][-1]
    return filters


# How rows lie in memory, by kind of input: the faster one counts.
FORMATS = {
    "numbers": ("contiguous",),
    "image": ("channels first", "channels last"),
    "tokens": ("contiguous",),
    "sequence": ("rows first", "positions first"),
}
# Whether gradients are set to None before a step or filled with zeros: the faster one counts, too.
ZEROING = {"to none": True, "to zero": False}


def variants(case: Case) -> list[str]:
    """The ways of PyTorch that are tried."""
    return [f"{form}, {zeroing}" for form in FORMATS[case.input_kind] for zeroing in ZEROING]


@final
class Theirs:
    """One variant: model, optimizer, and the table in the variant's memory format."""

    def __init__(self, case: Case, x: Any, y: Any, order: Any, tensors: dict[str, Any], variant: str) -> None:
        form, zeroing = variant.split(", ")
        self._case, self._form, self._to_none = case, form, ZEROING[zeroing]
        self._axis = 1 if form == "positions first" else 0
        self._x, self._y, self._order = x, torch.from_numpy(y), torch.from_numpy(order)
        if case.input_kind == "tokens":
            x = x.astype(np.int64)
        self._x = torch.from_numpy(x)
        if form == "channels first":
            self._x = self._x.permute(0, 3, 1, 2).contiguous()
        if form == "positions first":
            self._x = self._x.transpose(0, 1).contiguous()
        self._model = Builder(case, tensors, form != "positions first").build(case.layers)
        if form == "channels last":
            self._model = self._model.to(memory_format=torch.channels_last)
        learned = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.SGD(learned, lr=case.learning_rate, momentum=MOMENTUM, fused=True)
        self._at = 0

    def step(self) -> Any:
        """Takes the next rows, as ours does: a new order for each epoch, and rows gathered by it. Returns the loss."""
        if self._at == len(self._order):
            self._order, self._at = torch.randperm(len(self._order)), 0
        rows = self._order[self._at : self._at + self._case.batch]
        self._at += self._case.batch
        x, y = self._x.index_select(self._axis, rows), self._y.index_select(0, rows)
        if self._form == "channels last":
            x = x.permute(0, 3, 1, 2)
        self._optimizer.zero_grad(set_to_none=self._to_none)
        z = self._model(x)
        loss = functional.cross_entropy(z.reshape(-1, self._case.classes), y.reshape(-1))
        loss.backward()
        self._optimizer.step()
        return loss

    def run(self, steps: int) -> None:
        """So many steps."""
        for _ in range(steps):
            self.step()


def main(name: str, folder: Path) -> None:
    """Serves turns of the variants."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    case = BY_NAME[name]
    home = folder / "datasets" / (folder / "digest").read_text()
    x, y, order = np.load(home / "x.npy"), np.load(home / "y.npy"), np.load(folder / "order.npy")
    # The libraries are loaded and have their own memory before the gauge is made.
    nn.Linear(4, 4)(torch.zeros(2, 4)).sum().backward()
    gauge = MemoryGauge()
    tensors = np.load(folder / "weights.npz")
    sides: dict[str, Theirs] = {}

    def side(variant: str) -> Theirs:
        if variant not in sides:
            sides[variant] = Theirs(case, x, y, order, tensors, variant)
        return sides[variant]

    def losses(variant: str, steps: int) -> list[float]:
        sides.pop(variant, None)
        return [side(variant).step().item() for _ in range(steps)]

    def memory(variant: str, steps: int) -> int:
        side(variant)
        return gauge.peak_bytes(lambda: side(variant).run(steps))

    serve(
        {
            "variants": lambda: variants(case),
            "version": lambda: torch.__version__,
            "losses": losses,
            "turn": lambda variant, steps: cpu_seconds(lambda: side(variant).run(steps)),
            "memory": memory,
        }
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
