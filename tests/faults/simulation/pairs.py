"""All pairs of points: a job of a few steps, a first fault at each of its points, a second at each point that then follows.

Points are a worker's deaths, at each call and moment, and the coordinator's, at each act, or only at each call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.faults.simulation.job import Job
from tests.faults.simulation.plan import Fault, Kind, Moment
from tests.faults.simulation.simulation import Bench, Found

JOB = Job(
    seed=20,
    training_rows=30,
    validation_rows=768,
    batch_size=8,
    epochs=1,
    shards=4,
    workers=2,
    minimum=1,
    evaluate_every=2,
    checkpoint_every=2,
    keep=1,
    patience=1,
    step_s=0.4,
)
WORKERS = 2


def pairs(bench: Bench, moments: Sequence[Moment], every_act: bool) -> Iterator[Found]:
    """The simulations of all pairs; those of one fault come first among those of its pairs."""
    calm = bench.simulate(JOB, ())
    yield calm
    for first in points(calm, moments, every_act, 1, 1):
        alone = bench.simulate(JOB, (first,))
        yield alone
        struck_at = alone.faults.struck_at
        if struck_at is None:
            continue  # a call that nobody meets that way
        for second in points(alone, moments, every_act, *struck_at):
            yield bench.simulate(JOB, (first, second))


def points(found: Found, moments: Sequence[Moment], every_act: bool, call: int, act: int) -> Iterator[Fault]:
    """The points of a simulation from a call and an act on."""
    for at in range(call, found.faults.calls + 1):
        for rank in range(WORKERS):
            for moment in moments:
                yield Fault(Kind.KILL, at, rank, moment)
    acts = range(act, found.faults.acts + 1) if every_act else [at for at in found.faults.call_acts if at >= act]
    for at in acts:
        yield Fault(Kind.STOP, at)
