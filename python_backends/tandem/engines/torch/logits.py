"""What the leader hears of a step's logits: the likeliest token of every row, and those rows whole that it asked for.

Each rank of the last pipeline stage has the logits of a part of the vocabulary. Greedy rows, which are most, cost 8
bytes a rank then, and not the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tandem.parallel.collectives import Bytes

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepLogits:
    """Of a step's rows, over the whole vocabulary or one rank's part of it."""

    ids: npt.NDArray[np.int32]
    """The likeliest token of each row, of equally likely ones the lowest: [rows]."""
    values: Floats
    """Its logit; NaN where the row has one: [rows]."""
    whole: Floats
    """The rows that were asked for: [asked, vocabulary]."""


def summarize(logits: Tensor, asked: list[int], first_id: int) -> StepLogits:
    """``logits``: [rows, vocabulary from ``first_id`` on], any float dtype and device; ``asked``: rows wanted whole."""
    if logits.device.type == "cpu":
        rows = logits.float().numpy()
        ids = rows.argmax(-1)  # 5 to 10 times as quick as torch's; a NaN counts as the largest
        return StepLogits((ids + first_id).astype(np.int32), rows[np.arange(len(ids)), ids], rows[asked])
    values, likeliest = logits.float().max(-1)
    whole = logits[torch.tensor(asked, dtype=torch.int64, device=logits.device)].float().cpu().numpy()
    return StepLogits((likeliest.cpu().numpy() + first_id).astype(np.int32), values.cpu().numpy(), whole)


def to_bytes(part: StepLogits) -> Bytes:
    """As ``merge`` takes it."""
    return np.concatenate([array.reshape(-1).view(np.uint8) for array in (part.ids, part.values, part.whole)])


def size_of(rows: int, asked: int, vocabulary: int) -> int:
    """Bytes that ``to_bytes`` makes."""
    return 8 * rows + 4 * asked * vocabulary


def merge(parts: list[Bytes], rows: int, asked: int) -> StepLogits:
    """Put the vocabulary together again; ``parts`` in the order of the ids that they hold."""
    ids = np.stack([part[: 4 * rows].view(np.int32) for part in parts])
    values = np.stack([part[4 * rows : 8 * rows].view(np.float32) for part in parts])
    shown = [part[8 * rows :].view(np.float32) for part in parts]
    whole = np.concatenate([part.reshape(asked, part.size // max(1, asked)) for part in shown], axis=1)
    best = values.argmax(0), np.arange(rows)  # the first of equal ones, which has the lowest id
    return StepLogits(ids[best], values[best], whole)
