"""What can go wrong between a script and the queue, and the two outcomes that end a wait."""

from __future__ import annotations

from common.errors import UserError
from config import RedisConfig

REMEDIES = "run `python redis_manager.py clear` to drop what is there, or choose another --redis.namespace"


class ForeignPlanError(UserError):
    """The namespace holds another plan's samples."""


class FinishedRunError(UserError):
    """The namespace holds a run that is finished."""


class ProducerBusyError(UserError):
    """Another live producer feeds the namespace."""


class FencedError(UserError):
    """Another process has taken over this one's end of the queue."""


class ProducerGoneError(UserError):
    """The trainer needs samples, and no producer has been seen for `redis.producer_timeout_s`."""


class CapacityError(UserError):
    """The memory limit cannot hold what is needed at once."""


class RunFinished(Exception):  # noqa: N818 - an outcome, not an error
    """The trainer says that it is done: the producer may end."""


class StopRequested(Exception):  # noqa: N818 - an outcome, not an error
    """The process was told to stop while it waited."""


def foreign_plan(config: RedisConfig, found: str, expected: str) -> ForeignPlanError:
    """The error for a namespace that holds another plan.

    Args:
        config: names the namespace.
        found: fingerprint of the plan in it.
        expected: fingerprint of this run's.
    """
    return ForeignPlanError(
        f"namespace {config.namespace!r} at {config.address} holds another plan ({found[:12]}, not "
        f"{expected[:12]}): {REMEDIES}"
    )


def finished_run(config: RedisConfig) -> FinishedRunError:
    """The error for a namespace that holds a finished run."""
    return FinishedRunError(f"the run in namespace {config.namespace!r} at {config.address} is finished: {REMEDIES}")
