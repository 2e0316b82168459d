"""The anti-corruption layer: the only module that knows the format of the accounts service's events."""

import os

from protean.core.subscriber import BaseSubscriber

from .domain import domain
from .model import RegisterCustomer

STREAM = os.environ.get("ACCOUNTS_STREAM", "user")


@domain.subscriber(stream=STREAM)
class AccountsSubscriber(BaseSubscriber):
    """Translates `user.created` of the accounts service to `RegisterCustomer`, and ignores other events.

    Protean acknowledges the event when this returns. After an exception (a missing field, an unavailable database) it
    retries, and moves the event to the dead-letter stream after the last attempt. Other events continue.
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
            # The same in every repetition; the id of the entry is not.
            event_id=headers["id"],
        )
        domain.process(command, asynchronous=False)
