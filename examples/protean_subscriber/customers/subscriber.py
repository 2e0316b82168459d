"""The anti-corruption layer: the only place that knows what the accounts service's events look like."""

import os

from protean.core.subscriber import BaseSubscriber

from .domain import domain
from .model import RegisterCustomer

STREAM = os.environ.get("ACCOUNTS_STREAM", "user")


@domain.subscriber(stream=STREAM)
class AccountsSubscriber(BaseSubscriber):
    """Turns `user.created` of the accounts service into `RegisterCustomer`; the rest is not our business.

    Acknowledged when this returns. An exception (a field that is missing, a database that is away) makes
    Protean try again, and put the event aside after the last attempt; the others go on meanwhile.
    """

    def __call__(self, payload: dict) -> None:
        headers = payload["metadata"]["headers"]
        if headers["type"] != "user.created":
            return
        user = payload["data"]
        command = RegisterCustomer(
            customer_id=user["user_id"],
            name=user.get("display_name") or user["email"],
            email=user["email"],
            # The same on every repetition; the entry's own id is not.
            event_id=headers["id"],
        )
        domain.process(command, asynchronous=False)
