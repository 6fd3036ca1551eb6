"""Which token comes next, when an answer ends, and what its reader is told."""

from __future__ import annotations

from tensorrt_llm._results import Logprob, Response
from tensorrt_llm._sequence import Sequence
from tensorrt_llm._settings import number, version
from tensorrt_llm._tokens import LOGPROB, next_token, read


def choose(sequence: Sequence, vocab_size: int) -> int:
    """The next token, which is not the end's before ``min_tokens``."""
    sampling = sequence.sampling
    if len(sequence.answer) >= number("EOS_AFTER", float("inf")) and not sampling.ignore_eos and sampling.end_id >= 0:
        return int(sampling.end_id)
    token = next_token(sequence.state, sequence.seed, vocab_size, sequence.flavour)
    too_early = len(sequence.answer) < (sampling.min_tokens or 0) and token == sampling.end_id
    return (token + 1) % vocab_size if too_early else token


def add(sequence: Sequence, token: int) -> None:
    """One more token in the answer."""
    sequence.answer.append(token)
    sequence.unsent.append(token)
    sequence.state = read([token], sequence.state)


def why_ended(sequence: Sequence, token: int) -> tuple[str | None, int | None]:
    """Finish reason and stop reason after the latest token, or None. In the real order: a stop token that is the last
    one allowed is not noticed, as in every context phase; and ``min_tokens`` holds back the end token alone."""
    sampling = sequence.sampling
    stops = () if sampling.ignore_eos and version() != "1.2" else sampling.stop_token_ids or ()
    if token == sampling.end_id and not sampling.ignore_eos:
        return "stop", None
    if len(sequence.answer) >= sequence.max_tokens:
        return "length", None
    return ("stop", token) if token in stops else (None, None)


def make_response(sequence: Sequence, vocab_size: int, reason: str | None = None, stop: int | None = None) -> Response:
    """All tokens that were not told yet. A stop token is taken off; the end token stays."""
    tokens, sequence.unsent = sequence.unsent, []
    drops_end = reason == "stop" and stop is None and number("DROP_END", 0) != 0
    if drops_end or (stop is not None and not sequence.sampling.include_stop_str_in_output):
        tokens = tokens[:-1]
    return Response(
        token_ids=tokens,
        logprobs=_logprobs(sequence, tokens, vocab_size),
        logprobs_expected=sequence.sampling.logprobs is not None,
        finish_reason=reason,
        stop_reason=stop,
        cached_tokens=sequence.cached_tokens,
        decoding_iter=sequence.decoding_iter,
    )


def _logprobs(sequence: Sequence, tokens: list[int], vocab_size: int) -> list[dict[int, Logprob]]:
    wanted = sequence.sampling.logprobs
    if wanted is None:
        return []
    ranks = range(max(wanted, 1))
    found = [{(token + i) % vocab_size: Logprob(LOGPROB - i, i + 1) for i in ranks} for token in tokens]
    if sequence.kind == "generation_only" and tokens and sequence.decoding_iter == 1:
        # The first token was chosen in the context phase: its log-probabilities are known only if they came along.
        handed_over = getattr(sequence.disaggregated, "first_gen_log_probs", None)
        found = list(handed_over[0]) if handed_over else []
    return found
