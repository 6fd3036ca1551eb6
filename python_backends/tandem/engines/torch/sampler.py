"""From logits to tokens. Filters come in the usual order: penalties, temperature, top-k, top-p, min-p.

The choice is a pure function of the logits, the request's settings and (seed, position): one uniform number from a
counter-based generator, looked up in the cumulative distribution of the tokens that are left, in order of their ids.
So neither the other sequences of a batch, nor a move to another worker, changes an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tandem.engines.torch.logits import StepLogits
from tandem.engines.torch.sequence import Sequence
from tandem.messages import Sampling, TokenLogprob

SHORT_LISTS = (256, 4096)
"""How many of the likeliest tokens are looked at before all are sorted."""


@dataclass(frozen=True)
class Choice:
    """The next token of one sequence."""

    token_id: int
    logprob: TokenLogprob | None


@torch.inference_mode()
def choose(logits: StepLogits, sequences: list[Sequence]) -> list[Choice]:
    """One token for each of ``sequences``.

    Args:
        logits: of a row for each, and whole those of the rows that ``wants_whole_logits``, in this order. Rows after
            these are only checked.

    Raises:
        ArithmeticError: logits hold NaN or only -inf: the model's output is unusable.
    """
    if not np.isfinite(logits.values).all():
        raise ArithmeticError("the model's logits are not finite; the weights or the KV cache are damaged")
    whole = iter(torch.from_numpy(logits.whole))
    return [
        _choose_one(next(whole), sequence) if wants_whole_logits(sequence) else Choice(token_id, None)
        for token_id, sequence in zip(logits.ids[: len(sequences)].tolist(), sequences, strict=True)
    ]


def wants_whole_logits(sequence: Sequence) -> bool:
    """Whether more than the likeliest token is asked for."""
    s = sequence.work.sampling
    return s.temperature > 0 or s.logprobs is not None or _penalises(s) or _may_not_stop(sequence)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else: Philox (https://doi.org/10.1145/2063384.2063405)."""
    generator = np.random.Philox(key=seed & (2**64 - 1), counter=position)
    return float(generator.random_raw() >> 11) * 2.0**-53


def _penalises(s: Sampling) -> bool:
    return s.repetition_penalty != 1.0 or s.presence_penalty != 0.0 or s.frequency_penalty != 0.0


def _may_not_stop(sequence: Sequence) -> bool:
    stopping = sequence.work.stopping
    return bool(stopping.stop_token_ids) and sequence.num_output < stopping.min_tokens


def _choose_one(logits: Tensor, sequence: Sequence) -> Choice:
    """``logits``: fp32 [vocab_size] on CPU."""
    sampling = sequence.work.sampling
    if _penalises(sampling):
        logits = _penalised(logits, sequence, sampling)
    if _may_not_stop(sequence):
        logits = logits.clone()
        logits[list(sequence.work.stopping.stop_token_ids)] = -torch.inf
    if sampling.temperature == 0:
        token_id = int(logits.argmax())
    else:
        token_id = sample(logits, sampling, uniform(sampling.seed, len(sequence.token_ids)))
    logprob = None if sampling.logprobs is None else _logprob(logits, token_id, sampling.logprobs)
    return Choice(token_id, logprob)


def _penalised(logits: Tensor, sequence: Sequence, sampling: Sampling) -> Tensor:
    """Repetition counts prompt and answer (CTRL, https://arxiv.org/abs/1909.05858); presence and frequency count the
    answer alone (OpenAI's API)."""
    logits = logits.clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.unique(torch.tensor(sequence.token_ids))
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    answer = sequence.token_ids[sequence.num_prompt :]
    if answer:
        seen, counts = torch.unique(torch.tensor(answer), return_counts=True)
        logits[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits


def sample(logits: Tensor, sampling: Sampling, u: float) -> int:
    """The token at ``u`` in the cumulative distribution that temperature and filters leave.

    Args:
        logits: fp32 [vocab_size].
        sampling: with temperature above 0.
        u: in [0, 1).
    """
    scaled = (logits.double() - logits.max()) / sampling.temperature  # the likeliest is 0, however cold
    probabilities = torch.softmax(scaled, dim=-1)
    kept = _filter(probabilities, sampling)
    if kept is None:
        return _invert(probabilities, u)
    return int(kept[_invert(probabilities[kept], u)])


def _filter(probabilities: Tensor, sampling: Sampling) -> Tensor | None:
    """Ids of the tokens that top-k, top-p and min-p leave, ascending; None where they leave all."""
    vocab_size = probabilities.shape[0]
    k = sampling.top_k if 0 < sampling.top_k < vocab_size else vocab_size
    if k == vocab_size and sampling.top_p >= 1.0 and sampling.min_p <= 0.0:
        return None
    values = _likeliest(probabilities, k, sampling)
    keep = values >= sampling.min_p * values[0]
    if sampling.top_p < 1.0:
        before = values.cumsum(0) - values
        keep &= before < sampling.top_p * (values.sum() if k < vocab_size else 1.0)
    count = max(1, int(keep.sum()))
    return _ids_from(probabilities, values[count - 1], count)


def _ids_from(probabilities: Tensor, least: Tensor, count: int) -> Tensor:
    """Ids, ascending, of the ``count`` tokens with ``least`` or more; of equally likely ones the lower ids."""
    ids = (probabilities >= least).nonzero().flatten()
    surplus = ids.shape[0] - count
    if surplus == 0:
        return ids
    equal = (probabilities[ids] == least).nonzero().flatten()
    stays = torch.ones(ids.shape[0], dtype=torch.bool)
    stays[equal[-surplus:]] = False
    return ids[stays]


def _likeliest(probabilities: Tensor, k: int, sampling: Sampling) -> Tensor:
    """The ``k`` highest probabilities, descending; without top-k no more of them than top-p or min-p can keep.

    Sorting the whole vocabulary costs 30 times as much as a short list, which nearly always does.
    """
    if k == probabilities.shape[0]:
        for size in SHORT_LISTS:
            values = probabilities.topk(min(size, k)).values
            if float(values.sum()) >= sampling.top_p or float(values[-1]) < sampling.min_p * float(values[0]):
                return values
    return probabilities.topk(k).values


def _invert(weights: Tensor, u: float) -> int:
    """Index at ``u`` of the cumulative distribution over ``weights``, fp64 [n], of any positive sum."""
    cumulative = weights.cumsum(0)
    index = int(torch.searchsorted(cumulative, u * float(cumulative[-1]), right=True))
    return min(index, int(weights.nonzero()[-1])) if index >= weights.shape[0] else index


def _logprob(logits: Tensor, token_id: int, count: int) -> TokenLogprob:
    logprobs = torch.log_softmax(logits, dim=-1)
    top = logprobs.topk(min(count, logprobs.shape[0])) if count else None
    pairs = [] if top is None else list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprob(logprob=float(logprobs[token_id]), top=pairs)
