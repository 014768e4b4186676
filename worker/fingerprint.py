"""The fingerprint of a node's arithmetic: the hash of what its kernels give for fixed operations, and what explains it."""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
import platform
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from worker.randomness import Floats, Purpose, Stream, uniform

# Outputs, inputs and rows of products: sizes below, at and above the kernels' tiles, one row, and an evaluation block.
_PRODUCTS = ((10, 64, 1), (10, 128, 32), (64, 64, 13), (100, 300, 17), (128, 784, 32), (256, 512, 128), (33, 65, 256))

# Elements for functions and sums: odd, so that the tails of vector loops are among them.
_ELEMENTS = 4099


@functools.cache
def fingerprint() -> tuple[str, dict[str, str]]:
    """(SHA-256 in hex, explanation). The same on two nodes if their kernels give the same bits; computed with one BLAS thread.

    Two nodes that differ in the explanation may still have the same fingerprint.
    """
    digest = hashlib.sha256()
    with threadpool_limits(limits=1, user_api="blas"):
        for result in _results():
            digest.update(np.ascontiguousarray(result).tobytes())
    return digest.hexdigest(), explanation()


def _results() -> Iterator[NDArray[np.floating]]:
    yield from _products()
    x = _numbers(100, _ELEMENTS)
    positive = np.add(np.multiply(x, x), np.float32(1e-3))
    for function, argument in ((np.exp, x), (np.tanh, x), (np.sin, x), (np.log, positive), (np.sqrt, positive)):
        yield function(argument)
    yield np.divide(x, positive)
    matrix = _numbers(101, 37 * 53).reshape(37, 53)
    for axis in (0, 1):
        yield np.add.reduce(matrix, axis=axis)
        yield np.maximum.reduce(matrix, axis=axis)
        yield np.add.reduce(matrix.astype(np.float64), axis=axis)
    # Orthogonal initial weights take a QR factorization.
    yield from np.linalg.qr(matrix.T)
    yield from _functions_of_the_c_library()


def _products() -> Iterator[Floats]:
    """The products of a dense layer, in the layouts in which the engine computes them."""
    for at, (outputs, inputs, rows) in enumerate(_PRODUCTS):
        weight = _numbers(3 * at, outputs * inputs).reshape(outputs, inputs)
        x = _numbers(3 * at + 1, 2 * inputs * rows).reshape(2, inputs, rows)
        dy = _numbers(3 * at + 2, 2 * outputs * rows).reshape(2, outputs, rows)
        x_rows = np.ascontiguousarray(x.transpose(0, 2, 1))
        yield np.matmul(weight, x)
        yield np.matmul(weight, x_rows.transpose(0, 2, 1))
        yield np.matmul(dy, x.transpose(0, 2, 1))
        yield np.matmul(dy, x_rows)
        yield np.matmul(dy, np.ones(rows, np.float32))
        yield np.matmul(weight.T, dy)


def _functions_of_the_c_library() -> Iterator[NDArray[np.floating]]:
    """What Python's float64 functions give: learning rates take a cosine and a power, sinusoidal positions the others."""
    parts = [number / _ELEMENTS for number in range(_ELEMENTS)]
    yield np.array([math.cos(math.pi * part) for part in parts])
    for exponent in (0.5, 0.9, 2.5):
        yield np.array([math.pow(1 - part, exponent) for part in parts])
    yield np.array([function(100 * part) for function in (math.sin, math.cos) for part in parts])
    yield np.array([math.exp(-10 * part) for part in parts])


def _numbers(at: int, count: int) -> Floats:
    """`count` float32 in [-2, 2), the same on every node."""
    u = uniform(Stream(0, Purpose.FINGERPRINT, layer=at), count)
    return np.subtract(np.multiply(u, np.float32(4)), np.float32(2))


def explanation() -> dict[str, str]:
    """What explains a fingerprint: NumPy's version, BLAS with its version and kernel, the active CPU features, libm, Python."""
    blas = [info for info in threadpool_info() if info.get("user_api") == "blas"]
    return {
        "numpy": np.__version__,
        "blas": ", ".join(f"{info['internal_api']} {info['version']}" for info in blas) or "none",
        "blas_kernel": ", ".join(str(info.get("architecture", "unknown")) for info in blas) or "none",
        "cpu_features": " ".join(_active_features()),
        "libm": " ".join(platform.libc_ver()).strip() or "unknown",
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _active_features() -> list[str]:
    """The CPU features that NumPy's kernels may use here: its baseline, and what it dispatches to and finds enabled."""
    # NumPy shows them to people by numpy.show_runtime(), and to programs in this module alone.
    umath = importlib.import_module("numpy._core._multiarray_umath")
    enabled: dict[str, bool] = umath.__cpu_features__
    dispatched = [name for name in umath.__cpu_dispatch__ if enabled.get(name)]
    return sorted({*umath.__cpu_baseline__, *dispatched})
