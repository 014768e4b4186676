"""Lists: pages, filters, orders; each sentence of the convention."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from lockstep.contract.errors import UserError
from lockstep.v1 import dataset_service_pb2
from lockstep.v1 import training_job_service_pb2 as pb
from services import limits, pages
from services.jobs import filters
from tests.services.running import METADATA, Running, refusal
from tests.services.specs import spec

pytestmark = pytest.mark.anyio
INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def page(api: Running, **request: Any) -> tuple[list[str], str]:
    answer = await api.jobs.ListTrainingJobs(pb.ListTrainingJobsRequest(**request), metadata=METADATA)
    return [job.name.removeprefix("jobs/") for job in answer.training_jobs], answer.next_page_token


async def test_pages_are_whole_in_order_and_without_repeats(api: Running) -> None:
    for number in range(7):
        await api.create(training_job_id=f"j{number}")
    seen, token = [], ""
    for _ in range(4):
        names, token = await page(api, page_size=2, page_token=token)
        seen += names
    assert seen == [f"j{number}" for number in reversed(range(7))] and token == ""
    assert (await page(api, order_by="create_time"))[0] == [f"j{number}" for number in range(7)]


async def test_a_page_does_not_shift_when_something_is_added(api: Running) -> None:
    for number in range(4):
        await api.create(training_job_id=f"j{number}")
    first, token = await page(api, page_size=2)
    await api.create(training_job_id="newer")
    assert first == ["j3", "j2"] and (await page(api, page_size=2, page_token=token))[0] == ["j1", "j0"]


def test_page_sizes() -> None:
    assert (pages.page_size(0), pages.page_size(7), pages.page_size(10**9)) == (limits.PAGE_SIZE, 7, limits.PAGE_SIZE_MOST)
    with pytest.raises(UserError):
        pages.page_size(-1)


async def test_a_token_is_good_for_the_same_list_alone(api: Running) -> None:
    for number in range(3):
        await api.create(training_job_id=f"j{number}")
    _, token = await page(api, page_size=1)
    changed: list[dict[str, Any]] = [
        {"page_size": 1, "page_token": token, "filter": "state = QUEUED"},
        {"page_size": 1, "page_token": token, "order_by": "create_time"},
        {"page_token": "nonsense"},
        {"page_token": "e30"},
        {"page_size": -1},
        {"order_by": "name"},
    ]
    for request in changed:
        assert (await refusal(page(api, **request))).code() is INVALID


async def test_filters(api: Running) -> None:
    await api.create(spec(labels={"team": "a", "kind": "x"}), training_job_id="one")
    await api.create(spec(labels={"team": "b"}), training_job_id="two")
    await api.create(training_job_id="three")
    await api.cancel("jobs/three")
    expected = {
        "state = QUEUED": {"one", "two"},
        "state != QUEUED": {"three"},
        'labels.team = "a"': {"one"},
        "labels.team=a": {"one"},
        'labels.team != "a"': {"two", "three"},
        'labels.team = "b" AND state = QUEUED': {"two"},
        'labels.team = "a" AND labels.kind = "x" AND create_time > "2020-01-01T00:00:00Z"': {"one"},
        'create_time > "2120-01-01T00:00:00+02:00"': set(),
        "": {"one", "two", "three"},
    }
    for text, names in expected.items():
        assert set((await page(api, filter=text))[0]) == names, text


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("state", 6),
        ("state >", 8),
        ("state > QUEUED", 7),
        ("state = WAITING", 9),
        ("name = a", 1),
        ("labels.team > a", 13),
        ("labels.Team = a", 1),
        ("create_time = 5", 13),
        ("create_time > yesterday", 15),
        ('create_time > "2026-01-01"', 15),
        ("state = QUEUED OR state = RUNNING", 16),
        ("state = QUEUED AND", 19),
        ("state = 'QUEUED'", 9),
        ("; DROP TABLE jobs", 1),
    ],
)
def test_what_is_not_understood_is_refused_at_its_position(text: str, position: int) -> None:
    with pytest.raises(UserError, match=f"at character {position}:"):
        filters.condition(text)


def test_a_filter_has_bounds() -> None:
    with pytest.raises(UserError, match="more than 16"):
        filters.condition(" AND ".join(["state = QUEUED"] * 17))


async def test_datasets_come_by_name_in_pages(api: Running) -> None:
    for name in ("iris", "wine"):
        await api.add_dataset(name)
    request = dataset_service_pb2.ListDatasetsRequest(page_size=2)
    first = await api.datasets.ListDatasets(request, metadata=METADATA)
    request.page_token = first.next_page_token
    last = await api.datasets.ListDatasets(request, metadata=METADATA)
    assert [item.name for item in (*first.datasets, *last.datasets)] == ["datasets/digits", "datasets/iris", "datasets/wine"]
    assert last.next_page_token == ""
