"""From an exception to the Failure that the coordinator gets: whose affair it is, one sentence, the frames for the log."""

from __future__ import annotations

import errno
import traceback

from lockstep.contract.errors import UserError
from lockstep.internal.v1.worker_pb2 import Failure
from worker.collective.peers import PeerError
from worker.data.columns import DatasetUnreadable
from worker.limits import TRACE_CHARACTERS
from worker.weights_file import WeightsUnreadable


def failure_of(error: BaseException, who: str, step: int) -> Failure:
    """The failure of `who` ("worker 3 (node b)") after `step`."""
    kind, text = _judge(error)
    trace = "".join(traceback.format_exception(error))[-TRACE_CHARACTERS:]
    failure = Failure(kind=kind, text=f"{who}: {text}", trace=trace, step=step)
    if isinstance(error, PeerError):
        failure.text = error.message
        failure.missing_ranks.extend(error.missing_ranks)
        failure.patience_s = error.patience_s
    return failure


def _judge(error: BaseException) -> tuple[Failure.Kind.ValueType, str]:
    if isinstance(error, UserError):
        return Failure.USER, str(error)
    if isinstance(error, PeerError):
        return Failure.PEER, error.message
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.ENOSPC)):
        return Failure.MEMORY, f"memory ran out ({error}); give the worker more, or make the model or the batch smaller"
    if isinstance(error, (DatasetUnreadable, WeightsUnreadable)):
        return Failure.NODE, str(error)
    if isinstance(error, OSError):
        return Failure.NODE, f"the node failed: {error}"
    return Failure.INTERNAL, f"{type(error).__name__}: {error}"
