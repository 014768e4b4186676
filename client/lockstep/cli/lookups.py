"""The commands that look: jobs, show, cluster, version."""

from __future__ import annotations

from itertools import islice

import click

from lockstep import __version__
from lockstep.cli.conventions import Target, as_json
from lockstep.cli.job_lines import WAIT_STATES, State, result_words, state_line
from lockstep.cli.metric_words import all_metrics, class_row
from lockstep.cli.output import duration, json_line, moment, number, pairs, percent, result, size, table, talk
from lockstep.cli.result_tables import gradient_table, replay_table
from lockstep.contract.manifest import CLASSES_REPORTED
from lockstep.names import short
from lockstep.v1 import cluster_service_pb2, training_job_pb2

DEFAULT_LIMIT = 50

# Of a job's detail in the list.
DETAIL_CHARACTERS = 100


@click.command()
@click.option("--state", type=click.Choice(WAIT_STATES, case_sensitive=False), help="Only jobs in this state.")
@click.option("--filter", "condition", default="", help="As in 'labels.team = \"a\" AND state != FAILED'.")
@click.option("--limit", type=click.IntRange(min=0), default=DEFAULT_LIMIT, show_default=True, help="At most so many; 0: all.")
@as_json
@click.pass_obj
def jobs(target: Target, state: str | None, condition: str, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    conditions = [part for part in (f"state = {state}" if state else "", condition) if part]
    with target.connect() as client:
        listed = client.list(filter=" AND ".join(conditions))
        if as_json:
            for job in islice(listed, limit or None):
                json_line(job)
            return
        shown = list(islice(listed, limit or None))
        more = bool(limit) and next(listed, None) is not None
    if not shown:
        talk("no jobs")
        return
    table(("JOB", "STATE", "STEP", "LOSS", "ACCURACY", "CREATED", "DETAIL"), [_row(job) for job in shown])
    if more:
        talk(f"the newest {limit} are shown; --limit 0 shows all")


def _row(job: training_job_pb2.TrainingJob) -> tuple[str, ...]:
    progress = job.progress
    accuracy = percent(progress.validation_accuracy) if progress.HasField("validation_accuracy") else ""
    return (
        short(job.name),
        State.Name(job.state),
        f"{progress.step:,}/{progress.total_steps or job.plan.total_steps:,}",
        number(progress.loss) if progress.HasField("loss") else "",
        accuracy,
        moment(job.create_time),
        _cut(job.status_detail),
    )


def _cut(detail: str) -> str:
    """A detail of bounded length; `lockstep show` has all of it."""
    return detail if len(detail) <= DETAIL_CHARACTERS else detail[: DETAIL_CHARACTERS - 3] + "..."


@click.command()
@click.argument("job")
@as_json
@click.pass_obj
def show(target: Target, job: str, as_json: bool) -> None:
    """Show JOB: first of all its state, and why."""
    with target.connect() as client:
        found = client.get(job)
    if as_json:
        json_line(found)
        return
    result(state_line(found))
    progress, plan, spec = found.progress, found.plan, found.spec
    epoch = f"epoch {progress.epoch} of {spec.training.epochs}" if progress.epoch else ""
    step = f"{progress.step:,} of {progress.total_steps or plan.total_steps:,}" if progress.step else ""
    rate = f"{progress.samples_per_second:,.0f} samples/s" if progress.samples_per_second else ""
    going = progress.HasField("remaining_seconds") and found.state == State.RUNNING
    left = f"{duration(progress.remaining_seconds)} left" if going else ""
    pairs(
        [
            ("dataset", f"{spec.dataset}, {plan.training_rows:,} rows train, {plan.validation_rows:,} validate"),
            ("replays", _replayed(found.replay)),
            ("workers", f"at least {spec.workers.min}, at most {spec.workers.max}" if spec.workers.max else ""),
            ("created", moment(found.create_time)),
            ("started", moment(found.start_time)),
            ("ended", moment(found.end_time)),
            ("step", ", ".join(part for part in (step, epoch, rate, left) if part)),
            ("result", result_words(found.result)),
            ("validation", all_metrics(_metrics(found))),
            ("arithmetic", found.arithmetic_digest),
        ]
    )
    for warning in found.warnings:
        result(f"note: {warning}")
    if found.runs:
        result("")
        table(("RUN", "WORKERS", "STARTED", "ENDED", "STEPS", "WHY IT ENDED"), [_run(run) for run in found.runs])
    if classes := found.result.validation_classes:
        result("")
        table(("CLASS", "SUPPORT", "PRECISION", "RECALL", "F1"), [class_row(one) for one in classes])
        if len(classes) == CLASSES_REPORTED:
            talk(f"the first {CLASSES_REPORTED:,} classes are shown; manifest.json of the model has the counts of all")
    if found.result.checkpoints:
        result("")
        table(("CHECKPOINT", "SIZE", "WEIGHTS", ""), [_checkpoint(one) for one in found.result.checkpoints])
    if found.result.HasField("gradient_check"):
        result("")
        gradient_table(found.result.gradient_check)
    if found.result.HasField("replay"):
        result("")
        replay_table(found.result.replay)


def _replayed(replay: training_job_pb2.Replay) -> str:
    if not replay.job:
        return ""
    last = max([replay.step, *replay.hashed_steps])
    return f"{replay.job}, from step {replay.start_step:,} to {last:,}"


def _metrics(job: training_job_pb2.TrainingJob) -> training_job_pb2.ValidationMetrics:
    """Of the result, or of the last evaluation of a job that goes on."""
    return job.result.validation_metrics if job.HasField("result") else job.progress.validation_metrics


def _run(run: training_job_pb2.Run) -> tuple[str, ...]:
    steps = f"{run.start_step + 1:,} to {run.last_step:,}" if run.last_step > run.start_step else "none"
    return str(run.run_number), _workers(run), moment(run.start_time), moment(run.end_time), steps, run.end_reason


def _workers(run: training_job_pb2.Run) -> str:
    """Those that a run has now; of one that has ended the most that it had, and whether it came to have fewer."""
    if not run.members:
        return str(run.workers)
    if not run.HasField("end_time"):
        return str(len(run.members))
    return f"up to {run.workers}" if len(run.members) < run.workers else str(run.workers)


def _checkpoint(checkpoint: training_job_pb2.Checkpoint) -> tuple[str, ...]:
    best = "best of these" if checkpoint.best else ""
    return f"step {checkpoint.step:,}", size(checkpoint.size_bytes), checkpoint.weights_sha256[:12], best


@click.command()
@as_json
@click.pass_obj
def cluster(target: Target, as_json: bool) -> None:
    """Show the server's version, the agent, the nodes and their worker slots."""
    with target.connect() as client:
        found = client.cluster()
    if as_json:
        json_line(found)
        return
    pairs(
        [
            ("server", f"{client.server}, version {found.server_version}, arithmetic {found.arithmetic_version}"),
            ("agent", _agent(found)),
            ("slots", _slots(found)),
        ]
    )
    if found.nodes:
        table(("NODE", "ADDRESS", "SLOTS"), [(node.node_id[:12], node.address, str(node.slots)) for node in found.nodes])


def _agent(found: cluster_service_pb2.Cluster) -> str:
    word = "connected" if found.agent_connected else "away"
    if found.agent_since.seconds:
        return f"{word} since {moment(found.agent_since)}"
    return word if found.agent_connected else "none has connected since the server started"


def _slots(found: cluster_service_pb2.Cluster) -> str:
    if found.nodes or found.agent_connected:
        return f"{found.slots_in_use} of {found.slots} in use"
    return f"{found.slots_in_use} in use; how many there are is known when the agent is there"


@click.command()
@as_json
@click.pass_obj
def version(target: Target, as_json: bool) -> None:
    """Show the versions of client and server."""
    if not as_json:
        result(f"client  {__version__}")
    with target.connect() as client:
        server_version = client.version()
    if as_json:
        json_line({"client_version": __version__, "server_version": server_version})
    else:
        result(f"server  {server_version}")
