"""The compose cluster in a real Docker engine: two worker containers compute the weights of one process, whatever is killed.

In the order of the file: the short job; the long one, which Prometheus and every query of the dashboard see, and in whose midst
each service is killed and started again; at last its hash.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

import lockstep
from lockstep.spec import read
from lockstep.v1.job_spec_pb2 import JobSpec, Workers
from lockstep.v1.training_job_pb2 import TrainingJob
from tests.cluster.cluster import Cluster, until
from tests.cluster.dashboards import queries
from tests.cluster.engine import ROOT
from tests.cluster.missing import needs
from tests.cluster.watcher import Watcher
from tests.undisturbed import HASHES

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(420)]

LONG_S = 240
BACK_S = 60
GRACE_S = 30  # stop_grace_period; a process that has not ended by then is killed, which its exit code shows
RAY_NOTICES_S = 120  # old raylets see a new head after 55 to 60 s, end, and are started again
AGREEING_SCRAPES = 3


def example(name: str, workers: int) -> JobSpec:
    """An example job for exactly so many workers."""
    spec = JobSpec()
    spec.CopyFrom(read(ROOT / "examples" / name).spec)
    spec.workers.CopyFrom(Workers(min=workers, max=workers))
    return spec


def succeeded(job: TrainingJob) -> TrainingJob:
    """The job, if it is one."""
    assert job.state == TrainingJob.SUCCEEDED, f"{TrainingJob.State.Name(job.state)}: {job.status_detail}"
    return job


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[lockstep.Client]:
    """A client of the cluster, with digits registered."""
    with cluster.client() as client:
        client.push_dataset(ROOT / "examples/digits.npz", "digits")
        yield client


@pytest.fixture(scope="module")
def long_job(client: lockstep.Client) -> tuple[TrainingJob, Watcher]:
    """digits-long on both worker containers, watched from its first step."""
    job = client.submit(example("digits-long.yaml", workers=2))
    watcher = Watcher(client, job.name)
    until("the long job takes steps", lambda: watcher.step > 0 or watcher.error, BACK_S)
    return job, watcher


def test_two_containers_give_the_weights_of_the_reference(cluster: Cluster, client: lockstep.Client) -> None:
    reference = cluster.run_in_image("tests/worker/reference_digits.py", "examples/digits.npz", "--standardize")
    job = succeeded(client.wait(client.submit(example("digits.yaml", workers=2)).name, timeout_s=BACK_S))
    assert job.result.weights_sha256 == reference
    assert job.result.validation_accuracy >= 0.95
    members = job.runs[-1].members
    assert len({member.node for member in members}) == 2, "both shares were computed in one container"
    assert len({member.fingerprint for member in members}) == 1
    assert all(member.computed_rows for member in members)


def test_prometheus_shows_what_watch_reports(cluster: Cluster, long_job: tuple[TrainingJob, Watcher]) -> None:
    job, watcher = long_job

    def scrapes() -> dict[float, tuple[int, float]]:
        series = {}
        for metric in ("step", "loss"):
            found = cluster.query(f'lockstep_job_{metric}{{training_job=~".*{job.name.removeprefix("jobs/")}"}}[2m]')
            series[metric] = {time: value for one in found for time, value in one["values"]}
        both = series["step"].keys() & series["loss"].keys()
        return {time: (int(float(series["step"][time])), float(series["loss"][time])) for time in both}

    def agreeing() -> list[tuple[int, float]]:
        # Watch need not hear of every step that is scraped; of those it heard of, none may differ.
        seen = [(step, loss) for step, loss in scrapes().values() if step in watcher.losses]
        assert all(watcher.losses[step] == loss for step, loss in seen), seen
        return seen if len(set(seen)) >= AGREEING_SCRAPES else []

    for step, loss in until(f"{AGREEING_SCRAPES} scrapes of steps that Watch reported", agreeing, BACK_S):
        cluster.say(f"Prometheus and Watch both have step {step:,} with loss {loss:.6g}")


def test_every_query_of_the_dashboard_finds_data(cluster: Cluster, long_job: tuple[TrainingJob, Watcher]) -> None:
    del long_job  # it runs
    for title, expression in queries():
        until(f"{title}: {expression}", lambda expression=expression: cluster.query(expression), BACK_S)  # type: ignore[misc]
    alerts = cluster.query("ALERTS{alertstate='firing'}")
    assert not alerts, alerts
    promtool = [needs("promtool", "prometheus"), "check", "metrics"]
    lint = subprocess.run(promtool, input=cluster.metrics(), capture_output=True, text=True, timeout=30, check=False)
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_each_service_is_killed_and_the_weights_stay(
    cluster: Cluster, client: lockstep.Client, long_job: tuple[TrainingJob, Watcher]
) -> None:
    job, watcher = long_job
    total = job.plan.total_steps

    def kill(service: str, at: float) -> str:
        """SIGKILL to a service's first container past a share of the steps; gives the container, which lies still."""
        until(f"{service}: {at:.0%} of the steps", lambda: watcher.step >= total * at or watcher.error, LONG_S)
        container = cluster.containers(service)[0]
        cluster.kill(container)
        cluster.say(f"killed {service} at step {watcher.step:,} of {total:,}")
        assert watcher.step < total, "the job was too quick for the kill"
        return container

    def goes_on(service: str, within_s: float) -> None:
        """Waits until both slots are there and the job has taken steps that it had not taken at the kill."""
        reached = watcher.step
        until(f"two slots after {service}", lambda: cluster.slots() == 2, within_s)
        until(f"steps after {service}", lambda: watcher.step > reached or watcher.error, within_s)
        cluster.say(f"after {service} the job goes on: run {watcher.run_number}, step {watcher.step:,}")

    for service, at in (("api", 0.15), ("worker", 0.3)):
        cluster.start_again(kill(service, at))
        goes_on(service, BACK_S)

    # With the coordinator Ray's head dies. The worker containers are left alone: their Ray nodes notice, end, and are started
    # again by the restart policy.
    workers = cluster.containers("worker")
    restarts = {container: cluster.restarts(container) for container in workers}
    coordinator = kill("coordinator", 0.45)
    until("the API server says that the agent is away", lambda: not cluster.slots(), BACK_S)
    cluster.start_again(coordinator)
    until("a restart of both", lambda: all(cluster.restarts(each) > restarts[each] for each in workers), RAY_NOTICES_S)
    cluster.say("both worker containers were started again by the restart policy")
    goes_on("coordinator", BACK_S)

    watcher.join(LONG_S)
    ended = succeeded(client.get(job.name))
    cluster.say(f"{job.name} has succeeded, {len(ended.runs)} runs: {ended.result.weights_sha256}")
    undisturbed = HASHES.get(ended.result.fingerprint)
    if undisturbed is None:
        alone = client.submit(example("digits-long.yaml", workers=1)).name
        undisturbed = succeeded(client.wait(alone, timeout_s=LONG_S)).result.weights_sha256
    cluster.say(f"undisturbed, on one worker: {undisturbed}")
    assert ended.result.weights_sha256 == undisturbed
    assert all(run.start_step > 0 for run in ended.runs[1:]) and len(ended.runs) > 1
    assert ended.progress.applied_rows == job.plan.training_rows * job.spec.training.epochs


def test_a_stop_is_heard_in_the_midst_of_a_step(cluster: Cluster, client: lockstep.Client) -> None:
    watcher = Watcher(client, client.submit(example("digits-long.yaml", workers=2)).name)
    until("the job takes steps", lambda: watcher.step > 0 or watcher.error, BACK_S)
    began = time.monotonic()
    cluster.compose("stop", "--timeout", str(GRACE_S))
    cluster.say(f"all services stopped within {time.monotonic() - began:.1f} s")
    codes = cluster.exit_codes()
    assert len(codes) == 5 and not set(codes.values()) - {0, 128 + signal.SIGTERM}, codes
