"""A receiver's side, by the documentation alone: reads a request as JSON {headers, body, secrets} from standard
input, and reports which of the secrets (whsec_) the attributes of its event verify."""

import base64
import hashlib
import hmac
import json
import sys

request = json.load(sys.stdin)
headers = request["headers"]


def verifies(secret):
    names = sorted(name for name in headers if name.startswith("ce-") or name == "content-type")
    lines = ["ce-attributes", headers["webhook-id"], headers["webhook-timestamp"]]
    text = "\n".join(lines + [f"{name}:{headers[name]}" for name in names])
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = "v1," + base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
    signatures = headers.get("webhook-attributes-signature", "").split(" ")
    return any(hmac.compare_digest(expected, signature) for signature in signatures)


json.dump({"verified": [verifies(secret) for secret in request["secrets"]]}, sys.stdout)
