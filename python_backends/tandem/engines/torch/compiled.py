"""Loops for the CPU, compiled by numba: what stands between the matrix products of a layer, in bf16.

Torch runs these as chains of small operations that each cost several microseconds to start; 30 layers of them took
longer than reading all weights of a small model. bf16 is the upper half of an fp32 number and numpy knows it only as
uint16: numbers are widened when read and rounded to even when written, and all arithmetic is fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_I32, _F32, _F1 = ir.IntType(32), ir.FloatType(), np.float32(1)
_CACHE_LINE = 64
_AHEAD = 2
"""Pieces between the one in use and the one that is being fetched."""

_compile: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


@intrinsic  # type: ignore[untyped-decorator]
def _wide(_context: Any, _number: Any) -> tuple[Any, Any]:
    """bf16 bits, as uint16, to fp32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.zext(arguments[0], _I32), _I32(16))
        return builder.bitcast(bits, _F32)

    return types.float32(types.uint16), generate


@intrinsic  # type: ignore[untyped-decorator]
def _narrow(_context: Any, _number: Any) -> tuple[Any, Any]:
    """fp32 to bf16 bits, rounded to nearest, ties to even."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.add(bits, builder.add(odd, _I32(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, _I32(16)), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _bits_as_float(_context: Any, _number: Any) -> tuple[Any, Any]:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _F32)

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(_context: Any, _address: Any) -> tuple[Any, Any]:
    """Ask for the cache line at an address; any address will do."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])  # read, keep, data
        return context.get_dummy_value()

    return types.void(types.int64), generate


@njit(inline="always")  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    """e^x, relative error below 4e-6: 2^n by its bits, times a polynomial for 2^f, -0.5 <= f <= 0.5 (Cephes exp2f).

    The C library's version cannot be used on many numbers at once.
    """
    y = max(x, np.float32(-87)) * np.float32(1.44269504)
    y = min(y, np.float32(127))
    n = np.floor(y + np.float32(0.5))
    f = y - n
    p = np.float32(1.535336188319500e-4)
    p = p * f + np.float32(1.339887440266574e-3)
    p = p * f + np.float32(9.618437357674640e-3)
    p = p * f + np.float32(5.550332471162809e-2)
    p = p * f + np.float32(2.402264791363012e-1)
    p = p * f + np.float32(6.931472028550421e-1)
    p = p * f + _F1
    return p * _bits_as_float((np.int32(n) + np.int32(127)) << np.int32(23))


@njit("void(u2[:,::1], f4[:,::1], f4, u2[:,::1])", **_compile)  # type: ignore[untyped-decorator]
def rms_norm(x: Any, weight: Any, eps: Any, out: Any) -> None:
    """Row r of ``x`` [rows, size], normalised, times row r modulo w of ``weight`` [w, size]."""
    rows, size = x.shape
    for r in range(rows):
        total = np.float32(0)
        for i in range(size):
            value = _wide(x[r, i])
            total += value * value
        factor = _F1 / np.sqrt(total / np.float32(size) + eps)
        w = weight[r % weight.shape[0]]
        for i in range(size):
            out[r, i] = _narrow(_wide(x[r, i]) * factor * w[i])


@njit("void(u2[:,::1], u2[:,::1])", **_compile)  # type: ignore[untyped-decorator]
def gate(gate_up: Any, out: Any) -> None:
    """silu(left half) · right half: [rows, 2 * size] to [rows, size]."""
    rows, size = out.shape
    for r in range(rows):
        for i in range(size):
            value = _wide(gate_up[r, i])
            out[r, i] = _narrow(value / (_F1 + _exp(-value)) * _wide(gate_up[r, size + i]))


@njit("void(u2[:,:,:,::1], f4[:,:,::1], f4, u2[:,::1], i8[:,:,::1])", **_compile)  # type: ignore[untyped-decorator]
def turn_and_store(groups: Any, rotations: Any, scale: Any, slots: Any, index: Any) -> None:
    """Rotate queries and keys in place, scale queries, and copy keys and values to their slots.

    Args:
        groups: [tokens, kv_heads, group_size + 2, head_dim]: queries, key, value of each KV head.
        rotations: cosine and sine, [tokens, head_dim / 2, 2].
        scale: of the queries.
        slots: one layer's, [slots, head_dim].
        index: which slots, [tokens, kv_heads, 2].
    """
    tokens, kv_heads, members, head_dim = groups.shape
    for t in range(tokens):
        for h in range(kv_heads):
            for m in range(members - 1):
                head = groups[t, h, m]
                factor = scale if m < members - 2 else _F1
                for j in range(head_dim // 2):
                    cosine, sine = rotations[t, j, 0] * factor, rotations[t, j, 1] * factor
                    a, b = _wide(head[2 * j]), _wide(head[2 * j + 1])
                    head[2 * j] = _narrow(a * cosine - b * sine)
                    head[2 * j + 1] = _narrow(a * sine + b * cosine)
            for side in range(2):
                slot = slots[index[t, h, side]]
                for d in range(head_dim):
                    slot[d] = groups[t, h, members - 2 + side, d]


DecodeAttention = Callable[[Any, Any, Any, Any, Any], None]


def make_decode_attention(group_size: int, head_dim: int, block_size: int) -> DecodeAttention:
    """Attention of one query token per sequence, over the cache where it lies; compiled for these sizes."""

    @njit("void(u2[:,:,:,::1], u2[:,::1], i8[::1], i8[::1], u2[:,:,::1])", **_compile)  # type: ignore[untyped-decorator]
    def decode_attention(groups: Any, pieces: Any, index: Any, lengths: Any, out: Any) -> None:
        """Softmax of (queries · keys) times values.

        Args:
            groups: [sequences, kv_heads, group_size + 2, head_dim], queries scaled.
            pieces: one layer's, [pieces, block_size * head_dim].
            index: which pieces, in the order of use: for each sequence, for each KV head, its keys, its values.
            lengths: tokens of each sequence.
            out: [sequences, kv_heads * group_size, head_dim].
        """
        queries, sums = np.empty((group_size, head_dim), np.float32), np.empty((group_size, head_dim), np.float32)
        scores = np.empty((group_size, lengths.max()), np.float32)
        at = 0
        for s in range(groups.shape[0]):
            length = lengths[s]
            for h in range(groups.shape[1]):
                for g in range(group_size):
                    for d in range(head_dim):
                        queries[g, d] = _wide(groups[s, h, g, d])
                        sums[g, d] = 0
                for first in range(0, length, block_size):
                    count = min(block_size, length - first)
                    part = scores[:, first : first + count]
                    _score(queries, pieces[index[at]], part, _coming(pieces, index, at), group_size, head_dim)
                    at += 1
                for g in range(group_size):
                    _softmax(scores[g, :length])
                for first in range(0, length, block_size):
                    count = min(block_size, length - first)
                    part = scores[:, first : first + count]
                    _add_weighted(sums, pieces[index[at]], part, _coming(pieces, index, at), group_size, head_dim)
                    at += 1
                for g in range(group_size):
                    for d in range(head_dim):
                        out[s, h * group_size + g, d] = _narrow(sums[g, d])

    return decode_attention  # type: ignore[no-any-return]


@njit(inline="always")  # type: ignore[untyped-decorator]
def _coming(pieces: Any, index: Any, at: Any) -> Any:
    """Address of the piece that is used ``_AHEAD`` places later. The processor cannot guess: they lie scattered."""
    return pieces.ctypes.data + index[min(at + _AHEAD, index.shape[0] - 1)] * pieces.shape[1] * 2


@njit(inline="always")  # type: ignore[untyped-decorator]
def _fetch_row(address: Any, row: Any, head_dim: Any) -> None:
    for offset in range(0, head_dim * 2, _CACHE_LINE):
        _prefetch(address + row * head_dim * 2 + offset)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _score(queries: Any, keys: Any, scores: Any, coming: Any, group_size: Any, head_dim: Any) -> None:
    """scores[g, t] = queries[g] · keys[t]."""
    for t in range(scores.shape[1]):
        _fetch_row(coming, t, head_dim)
        for g in range(group_size):
            score = np.float32(0)
            for d in range(head_dim):
                score += queries[g, d] * _wide(keys[t * head_dim + d])
            scores[g, t] = score


@njit(inline="always")  # type: ignore[untyped-decorator]
def _add_weighted(sums: Any, values: Any, weights: Any, coming: Any, group_size: Any, head_dim: Any) -> None:
    """sums[g] += weights[g, t] · values[t], over all t."""
    for t in range(weights.shape[1]):
        _fetch_row(coming, t, head_dim)
        for g in range(group_size):
            weight = weights[g, t]
            for d in range(head_dim):
                sums[g, d] += weight * _wide(values[t * head_dim + d])


@njit(inline="always")  # type: ignore[untyped-decorator]
def _softmax(scores: Any) -> None:
    """In place."""
    most = scores[0]
    for t in range(scores.shape[0]):
        most = max(most, scores[t])
    total = np.float32(0)
    for t in range(scores.shape[0]):
        value = _exp(scores[t] - most)
        scores[t] = value
        total += value
    for t in range(scores.shape[0]):
        scores[t] /= total
