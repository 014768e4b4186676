"""Who may join a run: workers whose fingerprint is the job's. Pure; the sentences name both fingerprints and what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from coordinator.sharding import by_node
from lockstep.internal.v1 import worker_pb2


@final
class NotFitting(Exception):
    """Too few workers have the job's arithmetic: the `fitting` ranks alone. The text says which differ and in what."""

    def __init__(self, text: str, fitting: Sequence[int]) -> None:
        self.text = text
        self.fitting = list(fitting)
        super().__init__(text, fitting)

    def __str__(self) -> str:
        return self.text


@final
@dataclass(frozen=True, slots=True)
class Admitted:
    """The ranks that go on, in their new order; the fingerprint they share; a sentence for each worker that was refused."""

    ranks: list[int]
    fingerprint: str
    refused: list[str]


def admit(joined: Sequence[worker_pb2.JoinReply], required: str, minimum: int) -> Admitted:
    """Chooses the workers that share the job's fingerprint, or, when it has none yet, that of most of them.

    Those that are unfit by their own word are not among them. `joined` is by rank. Raises NotFitting when fewer than `minimum`
    are left.
    """
    common = Counter(reply.fingerprint for reply in joined if not reply.unfit).most_common(1)
    fingerprint = required or (common[0][0] if common else "")
    fitting = [rank for rank, reply in enumerate(joined) if reply.fingerprint == fingerprint and not reply.unfit]
    explanation = joined[fitting[0]].explanation if fitting else {}
    refused = [_refusal(rank, reply, fingerprint, explanation) for rank, reply in enumerate(joined) if rank not in fitting]
    if len(fitting) < max(1, minimum):
        raise NotFitting(
            f"{len(fitting)} of {len(joined)} workers have the job's arithmetic and at least {max(1, minimum)} are needed: "
            + "; ".join(refused)
            + ". Give the job nodes like those it began on",
            fitting,
        )
    order = by_node([joined[rank].node_id for rank in fitting])
    return Admitted([fitting[place] for place in order], fingerprint, refused)


def _refusal(rank: int, reply: worker_pb2.JoinReply, fingerprint: str, expected: Mapping[str, str]) -> str:
    who = f"worker {rank} (node {reply.node_id[:12]}, host {reply.host})"
    if reply.unfit:
        return f"{who} cannot compute the portable arithmetic: {reply.unfit}"
    who = f"{who} has fingerprint {reply.fingerprint}, the job's is {fingerprint}"
    if not expected:
        here = ", ".join(f"{key} {reply.explanation[key]}" for key in sorted(reply.explanation))
        return f"{who}; here: {here}" if here else who
    differing = [
        f"{key} is {reply.explanation.get(key, 'not known')!r} there and {expected.get(key, 'not known')!r} here"
        for key in sorted(set(reply.explanation) | set(expected))
        if reply.explanation.get(key) != expected.get(key)
    ]
    return f"{who}; {', '.join(differing) or 'nothing that explains it differs, so the processor itself may'}"
