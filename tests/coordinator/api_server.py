"""An API server for the agent's tests: speaks the stream, commits events to memory, acknowledges them, tells wishes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import agent_service_pb2_grpc

TOKEN = "agents-token"


class ApiServer(agent_service_pb2_grpc.AgentServiceServicer):
    """What it knows outlives `stop` and `start`, as a store does."""

    def __init__(self) -> None:
        self.hellos: list[agent.Hello] = []
        self.synced: list[agent.Synced] = []
        self.events: dict[tuple[str, int], list[agent.RunEvent]] = {}
        self.capacity = agent.Capacity()
        self.wishes: dict[tuple[str, int], agent.RunWish] = {}
        self.removed: list[str] = []
        self.refusal = ""
        self.violations: list[str] = []
        self.port = 0
        self._changed = threading.Condition()
        self._streams: list[queue.Queue[agent.ConnectResponse | None]] = []
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Listens, on the same port as before."""
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call, unused-ignore]
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        """Goes away in the midst of everything."""
        if self._server is not None:
            for stream in list(self._streams):
                stream.put(None)
            self._server.stop(0).wait(10)
            self._server = None

    def wish(self, order: agent.RunOrder, intent: agent.RunWish.Intent.ValueType = agent.RunWish.RUN) -> tuple[str, int]:
        """Wants something of a run, and says so."""
        key = (order.job_id, order.run_number)
        with self._changed:
            self.wishes[key] = agent.RunWish(order=order, intent=intent)
        self._tell()
        return key

    def forget(self, key: tuple[str, int]) -> None:
        """Does not want a run any more."""
        with self._changed:
            self.wishes.pop(key, None)
        self._tell()

    def remove(self, job_id: str) -> None:
        """Wants a job's checkpoints removed."""
        with self._changed:
            self.removed.append(job_id)
        self._tell()

    def ended(self, key: tuple[str, int]) -> agent.RunEnded | None:
        """How a run ended, once it did."""
        events = self.events.get(key, [])
        return events[-1].ended if events and events[-1].WhichOneof("event") == "ended" else None

    def wait(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
        """Waits until the condition gives something true, and gives it."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while not (found := condition()):
                left_s = end - time.monotonic()
                assert left_s > 0, f"not within {timeout_s} s; events: {self.events}; capacity: {self.capacity}"
                self._changed.wait(min(left_s, 0.1))
        return found

    def Connect(self, request_iterator: Any, context: grpc.ServicerContext) -> Iterator[agent.ConnectResponse]:
        """The one method."""
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the agent's token is missing or wrong")
        answers: queue.Queue[agent.ConnectResponse | None] = queue.Queue()
        threading.Thread(target=self._read, args=(request_iterator, answers), daemon=True).start()
        self._streams.append(answers)
        try:
            while (answer := answers.get()) is not None:
                yield answer
        finally:
            self._streams.remove(answers)

    def _read(self, requests: Any, answers: queue.Queue[agent.ConnectResponse | None]) -> None:
        try:
            for request in requests:
                with self._changed:
                    self._take(request, answers)
                    self._changed.notify_all()
        except grpc.RpcError:
            pass
        except Exception as error:
            if "StatusCode" not in str(error) and type(error) is not Exception:
                raise
        finally:
            answers.put(None)

    def _take(self, request: agent.ConnectRequest, answers: queue.Queue[agent.ConnectResponse | None]) -> None:
        kind = request.WhichOneof("message")
        if kind == "hello":
            self.hellos.append(request.hello)
            if self.refusal:
                answers.put(agent.ConnectResponse(refusal=agent.Refusal(reason=self.refusal)))
        elif kind == "synced":
            self.synced.append(request.synced)
            answers.put(self._wishes_message())
        elif kind == "capacity":
            self.capacity = request.capacity
        elif kind == "run_event":
            answers.put(agent.ConnectResponse(acknowledge=self.commit(request.run_event)))

    def commit(self, event: agent.RunEvent) -> agent.Acknowledge:
        """Takes an event that has not come yet into memory, and acknowledges all that came."""
        key = (event.run.job_id, event.run.run_number)
        events = self.events.setdefault(key, [])
        if event.sequence == len(events) + 1:
            events.append(event)
            if event.WhichOneof("event") == "ended":
                self.wishes.pop(key, None)
        elif event.sequence > len(events) + 1:
            self.violations.append(f"{key}: event {event.sequence} came after {len(events)}")
        return agent.Acknowledge(run=event.run, sequence=len(events))

    def _wishes_message(self) -> agent.ConnectResponse:
        return agent.ConnectResponse(wishes=agent.Wishes(runs=list(self.wishes.values()), removed_job_ids=self.removed))

    def _tell(self) -> None:
        for stream in list(self._streams):
            stream.put(self._wishes_message())
