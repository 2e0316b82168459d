"""Validates the settings that the chart renders with the hub itself.

For each values file of helm/ci: renders the chart, reads hub.toml from the ConfigMap and the environment of each
Deployment (with dummy secrets), and runs `hub config check` with them. Also compares the domains that the Deployments
deliver with those of the hub.

usage: PYTHONPATH=FOLDER_WITH_PYYAML chart-settings.py HUB HELM
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent.parent / "helm"
# Secrets that must be valid; any other secret is a dummy string.
SECRETS = {
    "HUB__EXTERNAL_BROKERS": '[{name = "partner_events", password = "made-up"}]',
    "HUB__SECRETS__PREVIOUS_KEYS": "k0:" + base64.b64encode(bytes(range(1, 33))).decode(),
    "HUB__SECRETS__MASTER_KEY": base64.b64encode(bytes(range(32))).decode(),
    "HUB__OUTBOX__DATABASE_URL": "postgres://app:made-up@127.0.0.1/app",
}


def rendered(helm: str, values: Path) -> tuple[str, dict[str, dict[str, str]], set[str]]:
    """Returns hub.toml, the environment of each Deployment, and the domains after `--domain`, as rendered by the chart."""
    text = subprocess.run(
        [helm, "template", "hub", CHART, "-f", values], check=True, capture_output=True, text=True
    ).stdout
    objects = [each for each in yaml.safe_load_all(text) if each]
    (settings,) = [
        each["data"]["hub.toml"]
        for each in objects
        if each["kind"] == "ConfigMap" and "annotations" not in each["metadata"] and "hub.toml" in each.get("data", {})
    ]
    environments, domains = {}, set()
    for deployment in objects:
        if deployment["kind"] != "Deployment":
            continue
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        environment = environments[deployment["metadata"]["name"]] = {}
        for variable in container["env"]:
            name = variable["name"]
            # Mounted files, such as HUB_CONFIG, do not exist here.
            if name == "HUB_CONFIG" or name.endswith("_FILE"):
                continue
            environment[name] = variable.get("value") or SECRETS.get(name, "made-up")
        args = container["args"]
        if "--domain" in args:
            domains.update(args[args.index("--domain") + 1].split(","))
    return settings, environments, domains


def hub_with(hub: str, settings: str, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hub.toml"
        file.write_text(settings)
        return subprocess.run(
            [hub, *command],
            env={**os.environ, **environment, "HUB_CONFIG": str(file)},
            capture_output=True,
            text=True,
            timeout=60,
        )


def main(hub: str, helm: str) -> int:
    checked = failed = 0
    for values in sorted(CHART.glob("ci/*-values.yaml")):
        settings, environments, domains = rendered(helm, values)
        for name, environment in environments.items():
            check = hub_with(hub, settings, environment, "config", "check")
            checked += 1
            if check.returncode == 0:
                print(f"{values.name}, {name}: valid")
            else:
                failed += 1
                print(f"{values.name}, {name}: rejected by the hub:\n{check.stdout}{check.stderr}\n{settings}")
        if domains:
            # Every domain of the hub has a Deployment that delivers.
            shown = hub_with(hub, settings, environment, "config", "show", "--output", "json")
            known = {domain["name"] for domain in json.loads(shown.stdout)["domains"]}
            if domains != known:
                failed += 1
                print(f"{values.name}: the Deployments deliver {sorted(domains)}, but the hub has {sorted(known)}")
    if checked == 0:
        print(f"no values files in {CHART / 'ci'}")
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
