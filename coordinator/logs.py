"""JSON log lines on stderr, each with its process, and with job and run where there are any."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(process: str) -> structlog.stdlib.BoundLogger:
    """Sets up the log of this process and returns it."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    log: structlog.stdlib.BoundLogger = structlog.get_logger().bind(process=process)
    return log
