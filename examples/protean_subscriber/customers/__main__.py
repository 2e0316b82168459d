"""`python -m customers`: consumes events until SIGTERM or Ctrl-C."""

import asyncio
import logging
import os
import sys

import redis
from protean.server import Engine
from protean.utils import fqn

from .domain import domain
from .subscriber import STREAM, AccountsSubscriber

# Longer than the handling of ten events (one read of Protean), including retries.
RECLAIM_AFTER = float(os.environ.get("RECLAIM_AFTER_SECONDS", "60"))
RECLAIM_AT_ONCE = 100

logger = logging.getLogger(__name__)


async def reclaim_abandoned(engine: Engine) -> None:
    """Claims events that crashed consumers have read but not acknowledged.

    Protean 0.18 retries only the pending events of its own consumer name, which is new in each process. Pending
    events of a crashed process would wait forever.
    """
    broker = domain.brokers["default"]
    while not engine.shutting_down:
        try:
            claimed = broker.redis_instance.xautoclaim(
                STREAM,
                fqn(AccountsSubscriber),
                broker._consumer_name,
                min_idle_time=int(RECLAIM_AFTER * 1000),
                count=RECLAIM_AT_ONCE,
                justid=True,
            )
            if claimed:
                logger.info("claimed %d pending events of a crashed or failing consumer", len(claimed))
        except redis.RedisError as error:
            # The subscription logs the error as well, and continues when Redis is available.
            logger.warning("claiming pending events failed, will retry: %s", error)
        for _ in range(max(1, round(RECLAIM_AFTER / 2))):
            if engine.shutting_down:
                return
            await asyncio.sleep(1)


def main() -> int:
    domain.init(traverse=False)
    with domain.domain_context():
        domain.setup_database()
        engine = Engine(domain)
        reclaiming = engine.loop.create_task(reclaim_abandoned(engine))
        engine.run()
        assert reclaiming.done(), "the engine waits for its tasks"
    return engine.exit_code


if __name__ == "__main__":
    sys.exit(main())
