"""Checks `verifySecrets` of the chart: Helm renders it with a cluster that has, or lacks, the Secrets of the values.

The cluster is a server in this process that knows Secrets and service accounts only.

usage: chart-secrets.py HELM
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHART = Path(__file__).resolve().parent.parent / "helm"
NAMESPACE = "integration"
VALUES = ["nats.auth.method=token", "nats.auth.existingSecret=nats-hub", "masterKey.existingSecret=hub-secrets"]
NATS = {"nats-hub": ["token"]}
BOTH = {**NATS, "hub-secrets": ["master-key"]}
# A name, the Secrets of the cluster with their keys (None: no cluster has the namespace), further values, and a part of the
# expected error.
CASES: list[tuple[str, dict[str, list[str]] | None, list[str], str | None]] = [
    ("all are there", BOTH, [], None),
    ("one is missing", NATS, [], 'masterKey.existingSecret: no Secret "hub-secrets" in the namespace integration'),
    ("a key is missing", {**NATS, "hub-secrets": ["key"]}, [], 'the Secret "hub-secrets" has no key "master-key"; its keys: key'),
    ("a Secret without keys", {**NATS, "hub-secrets": []}, [], 'has no key "master-key"; its keys: '),
    ("one is missing, but is created later", NATS, ["verifySecrets=false"], None),
    ("no cluster", None, [], None),
    (
        "that of a role is missing",
        BOTH,
        ["roles.split=true", "roles.api.nats.auth.existingSecret=nats-api"],
        'nats.auth.existingSecret: no Secret "nats-api"',
    ),
]
# The kinds that the chart renders.
CORE = ["Secret", "ServiceAccount", "ConfigMap", "Service", "Pod"]
GROUPS = {"apps": ["Deployment"], "batch": ["Job"]}


def resources(version: str, kinds: list[str]) -> dict[str, Any]:
    listed = [
        {"name": f"{kind.lower()}s", "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
        for kind in kinds
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": listed}


def answer(path: str, secrets: dict[str, list[str]] | None) -> tuple[int, dict[str, Any]]:
    fixed: dict[str, dict[str, Any]] = {
        "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [{"name": name, "versions": [{"groupVersion": f"{name}/v1", "version": "v1"}]} for name in GROUPS],
        },
        "/api/v1": resources("v1", CORE),
        **{f"/apis/{name}/v1": resources(f"{name}/v1", kinds) for name, kinds in GROUPS.items()},
    }
    if path in fixed:
        return 200, fixed[path]
    prefix = f"/api/v1/namespaces/{NAMESPACE}/"
    kind, _, name = path.removeprefix(prefix).partition("/")
    metadata = {"name": name, "namespace": NAMESPACE}
    if path.startswith(prefix) and secrets is not None:
        if kind == "serviceaccounts" and name == "default":
            return 200, {"kind": "ServiceAccount", "apiVersion": "v1", "metadata": metadata}
        if kind == "secrets" and name in secrets:
            data = {key: "bWFkZS11cA==" for key in secrets[name]}
            return 200, {"kind": "Secret", "apiVersion": "v1", "metadata": metadata, **({"data": data} if data else {})}
    return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


def render(helm: str, secrets: dict[str, list[str]] | None, values: list[str]) -> subprocess.CompletedProcess[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = answer(self.path.partition("?")[0].rstrip("/"), secrets)
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as home:
            settings = [part for value in VALUES + values for part in ("--set", value)]
            return subprocess.run(
                [helm, "template", "hub", CHART, "--namespace", NAMESPACE, "--dry-run=server", *settings]
                + ["--disable-openapi-validation", "--kube-apiserver", f"http://127.0.0.1:{server.server_port}"],
                env={"PATH": os.environ["PATH"], "HOME": home},
                capture_output=True,
                text=True,
                timeout=60,
            )
    finally:
        server.shutdown()
        server.server_close()


def main(helm: str) -> int:
    failed = 0
    for name, secrets, values, expected in CASES:
        rendered = render(helm, secrets, values)
        if expected is None and rendered.returncode != 0:
            failed += 1
            print(f"Secrets, {name}: rejected:\n{rendered.stderr}")
        elif expected is not None and (rendered.returncode == 0 or expected not in rendered.stderr):
            failed += 1
            print(f"Secrets, {name}: the error does not contain {expected!r}:\n{rendered.stderr}")
    if failed == 0:
        print(f"Secrets: {len(CASES)} cases are as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
