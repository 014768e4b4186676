"""HOST:PORT, read and written; which of them are beyond this machine."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, final

from lockstep.contract.errors import UserError

_ADDRESS: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]*)):([0-9]{1,5})")


@final
@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; port 0 means any that is free."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, flag: str) -> Address:
        """Reads HOST:PORT. Raises UserError."""
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match[3]) > 65535:
            raise UserError.of(flag, text, "it must be HOST:PORT, as in 127.0.0.1:7460", "ADDRESS_UNUSABLE")
        return cls(match[1] or match[2] or "0.0.0.0", int(match[3]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
