"""A receiver's side, by public libraries: reads a request as JSON {headers, body, secrets} from
standard input, and reports which of the secrets it verifies (standardwebhooks) and which event it is
(the CloudEvents SDK)."""

import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook, WebhookVerificationError


def verifies(request, secret):
    try:
        Webhook(secret).verify(request["body"], request["headers"])
    except WebhookVerificationError:
        return False
    return True


request = json.load(sys.stdin)
message = HTTPMessage(headers=request["headers"], body=request["body"].encode())
event = from_http_event(message)
attributes = {name: str(value) for name, value in event.get_attributes().items()}
data = event.get_data()
if isinstance(data, bytes):
    data = json.loads(data)
json.dump(
    {
        "verified": [verifies(request, secret) for secret in request["secrets"]],
        "attributes": attributes,
        "data": data,
    },
    sys.stdout,
)
