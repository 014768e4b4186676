"""Lockstep: a distributed training service. The client: submit a job as data, watch it, take the model home."""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers understand it; the typing module would be most of what the import costs
if TYPE_CHECKING:
    from lockstep.client import Client
    from lockstep.contract.errors import InternalError, LockstepError, UserError, Violation
    from lockstep.failures import ServerUnavailable, WaitTimeout

__version__ = "0.1.0"

__all__ = [
    "Client",
    "InternalError",
    "LockstepError",
    "ServerUnavailable",
    "UserError",
    "Violation",
    "WaitTimeout",
    "__version__",
]

# Where each public name lives: it is loaded when it is first used, so that `import lockstep` costs nothing.
_HOMES = {
    "Client": "lockstep.client",
    "InternalError": "lockstep.contract.errors",
    "LockstepError": "lockstep.contract.errors",
    "ServerUnavailable": "lockstep.failures",
    "UserError": "lockstep.contract.errors",
    "Violation": "lockstep.contract.errors",
    "WaitTimeout": "lockstep.failures",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'lockstep' has no attribute {name!r}")
    home: object = import_module(_HOMES[name])
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
