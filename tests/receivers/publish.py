"""A producer's side, by the public CloudEvents SDK: publishes one event in structured and one in binary
mode at the address given, and reports each answer as JSON."""

import json
import os
import sys
import urllib.error
import urllib.request
from datetime import datetime, timezone

from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent


def post(message):
    headers = {**message.headers, "authorization": "Bearer " + os.environ["HUB_TOKEN"]}
    request = urllib.request.Request(sys.argv[1], message.body, headers, method="POST")
    # The address is loopback's: no proxy of the environment is in between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return {"status": answer.status, "body": json.load(answer)}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": json.load(error)}


def event(name):
    attributes = {
        "id": name,
        "source": "/idp",
        "type": "user.created",
        "specversion": "1.0",
        "subject": 'Zoë "the" 100%',
        "time": datetime(2026, 1, 31, 12, tzinfo=timezone.utc),
        "datacontenttype": "application/json",
    }
    return CloudEvent(attributes, {"user_id": name})


messages = [to_structured_event(event("structured €")), to_binary_event(event("binary €"))]
json.dump([post(message) for message in messages], sys.stdout)
