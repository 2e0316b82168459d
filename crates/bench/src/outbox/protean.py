"""Protean's side of `hub-bench outbox --figures redis`: writes rows to Protean's outbox, and lets Protean's engine
publish them to Redis.

The hub runs it; by hand: BENCH_DATABASE_URL=postgres://… BENCH_REDIS_URL=redis://… python protean.py ROWS

Protean is set up for speed: the outbox processor alone in its engine, large batches, no wait between two of them,
no trace history, and no log below errors. The rows are raised as Protean raises them: an aggregate's event,
saved within a unit of work.

On standard output, a line of JSON when the rows are written: {"stream": …, "settings": …}. It then publishes until
it is stopped.
"""

import json
import logging
import multiprocessing
import os
import sys

from protean import Domain
from protean.core.unit_of_work import UnitOfWork
from protean.fields import Boolean, Identifier, List, String, Text
from protean.server import Engine

# Rows of one unit of work.
PER_COMMIT = 100
# Rows that its processor claims at a time; its default is 50. What it does for each row costs far more than a claim.
BATCH = 500


def new_domain(database_url: str, redis_url: str) -> Domain:
    domain = Domain(
        name="Bench",
        config={
            "databases": {
                "default": {
                    "provider": "postgresql",
                    "database_uri": database_url.replace("postgres://", "postgresql+psycopg://", 1),
                }
            },
            "brokers": {"default": {"provider": "redis", "URI": redis_url}},
            "enable_outbox": True,
            "server": {"default_subscription_type": "stream"},
            "event_processing": "async",
            "command_processing": "async",
            "outbox": {"messages_per_tick": BATCH, "tick_interval": 0},
            "observatory": {"trace_retention_days": 0},
        },
    )

    @domain.aggregate
    class User:
        email = String(max_length=200)
        roles = List(content_type=String)
        active = Boolean()
        note = Text()

        @classmethod
        def create(cls, number: int) -> "User":
            user = cls(
                id=f"u{number}", email=f"user{number}@example.com", roles=["reader", "author"], active=True, note=NOTE
            )
            user.raise_(
                Created(user_id=user.id, email=user.email, roles=user.roles, active=user.active, note=user.note)
            )
            return user

    @domain.event(part_of=User)
    class Created:
        user_id = Identifier()
        email = String(max_length=200)
        roles = List(content_type=String)
        active = Boolean()
        note = Text()

    domain.init(traverse=False)
    domain.User = User
    return domain


# The event is 600 bytes of JSON, as the hub's is.
NOTE = "abcdefghijklmnopqrstuvwxyz" * 19


def write(rows: int) -> None:
    """Raises a number of events."""
    domain = new_domain(os.environ["BENCH_DATABASE_URL"], os.environ["BENCH_REDIS_URL"])
    with domain.domain_context():
        domain.setup_database()
        repository = domain.repository_for(domain.User)
        for start in range(0, rows, PER_COMMIT):
            with UnitOfWork():
                for number in range(start, min(rows, start + PER_COMMIT)):
                    repository.add(domain.User.create(number))


def main() -> None:
    rows = int(sys.argv[1])
    logging.disable(logging.WARNING)
    # In a process of its own: the event store in memory, which holds the events that were raised, copies all of them
    # for each row that is published. In the engine's process it is empty, and costs nothing.
    writer = multiprocessing.get_context("fork").Process(target=write, args=(rows,))
    writer.start()
    writer.join()
    if writer.exitcode != 0:
        sys.exit("the rows could not be written")
    domain = new_domain(os.environ["BENCH_DATABASE_URL"], os.environ["BENCH_REDIS_URL"])
    report = {
        "stream": domain.User.meta_.stream_category,
        "settings": f"messages_per_tick {BATCH}, tick_interval 0, no trace history, an empty event store, one process",
    }
    print(json.dumps(report), flush=True)
    with domain.domain_context():
        Engine(domain).run()


if __name__ == "__main__":
    main()
