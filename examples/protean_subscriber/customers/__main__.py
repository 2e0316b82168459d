"""`python -m customers`: subscribes until it is told to stop (SIGTERM, Ctrl-C)."""

import asyncio
import logging
import os
import sys

import redis
from protean.server import Engine
from protean.utils import fqn

from .domain import domain
from .subscriber import STREAM, AccountsSubscriber

# Longer than the handling of ten events (what Protean reads at once) takes, retries included.
RECLAIM_AFTER = float(os.environ.get("RECLAIM_AFTER_SECONDS", "60"))
RECLAIM_AT_ONCE = 100

logger = logging.getLogger(__name__)


async def reclaim_abandoned(engine: Engine) -> None:
    """Takes over what consumers that are gone have read and not acknowledged.

    Protean 0.18 reads again what is pending under the name of its own consumer, which is a new one in each
    process; what a crashed one held would wait for ever.
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
                logger.info("%d events of a consumer that is gone, or that failed, are ours", len(claimed))
        except redis.RedisError as error:
            # The subscription tells of it as well, and goes on when Redis is back.
            logger.warning("nothing can be reclaimed now: %s", error)
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
