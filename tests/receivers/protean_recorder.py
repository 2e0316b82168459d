"""Another team's service: a Protean engine with a subscriber on a Redis stream, which writes down what it is
given, what Protean itself makes of it, and what Protean's own external envelope looks like: one JSON object in
each line of standard output.

    python protean_recorder.py STREAM redis://127.0.0.1:6379
"""

import copy
import json
import sys

from protean import Domain
from protean.core.subscriber import BaseSubscriber
from protean.fields import Identifier, String
from protean.server import Engine
from protean.utils.eventing import Message, Metadata

STREAM, REDIS_URL = sys.argv[1:]

domain = Domain(name="Recorder")
domain.config["brokers"]["default"] = {"provider": "redis", "URI": REDIS_URL}
domain.config["server"]["health"]["enabled"] = False


@domain.aggregate
class User:
    user_id = Identifier(identifier=True)


@domain.event(part_of=User)
class UserCreated:
    """The producer's event, in our domain: registered by the type that it has outside."""

    user_id = Identifier(identifier=True)
    email = String()
    height = String()


def tell(**what) -> None:
    print(json.dumps(what), flush=True)


@domain.subscriber(stream=STREAM)
class Recorder(BaseSubscriber):
    def __call__(self, payload: dict) -> None:
        message = Message.deserialize(copy.deepcopy(payload))
        record = {"payload": payload, "message": message.to_external_dict(), "cloud_event": message.to_cloudevent()}
        if message.metadata.headers.type == "user.created":
            event = message.to_domain_object()
            record["event"] = {"class": type(event).__name__, **event.payload}
        tell(**record)


domain.init(traverse=False)
domain.register_external_event(UserCreated, "user.created")
with domain.domain_context():
    user = User(user_id="reference")
    user.raise_(UserCreated(user_id="reference"))
    [event] = user._events
    message = Message.from_domain_object(event)
    # What an enriched event has besides.
    metadata = Metadata(**{**message.metadata.to_dict(), "extensions": {"any": "thing"}})
    tell(reference=Message(data=message.data, metadata=metadata).to_external_dict())
    engine = Engine(domain)
    engine.run()
sys.exit(engine.exit_code)
