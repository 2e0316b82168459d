"""Validates the settings that the chart renders with the hub itself.

For each values file of helm/ci: renders the chart, reads hub.toml from the ConfigMap and the
environment from the Deployment (with dummy secrets), and runs `hub config check` with them.

usage: PYTHONPATH=FOLDER_WITH_PYYAML chart-settings.py HUB HELM
"""

import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent.parent / "helm"
# Secrets that must be valid; any other secret is a dummy string.
SECRETS = {
    "HUB__SECRETS__MASTER_KEY": base64.b64encode(bytes(range(32))).decode(),
    "HUB__OUTBOX__DATABASE_URL": "postgres://app:made-up@127.0.0.1/app",
}


def rendered(helm: str, values: Path) -> tuple[str, dict[str, str]]:
    """Returns hub.toml and the environment of the hub's container, as rendered by the chart."""
    text = subprocess.run(
        [helm, "template", "hub", CHART, "-f", values], check=True, capture_output=True, text=True
    ).stdout
    objects = [each for each in yaml.safe_load_all(text) if each]
    (settings,) = [
        each["data"]["hub.toml"]
        for each in objects
        if each["kind"] == "ConfigMap" and "annotations" not in each["metadata"]
    ]
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    environment = {}
    for variable in deployment["spec"]["template"]["spec"]["containers"][0]["env"]:
        name = variable["name"]
        # Mounted files, such as HUB_CONFIG, do not exist here.
        if name == "HUB_CONFIG" or name.endswith("_FILE"):
            continue
        environment[name] = variable.get("value") or SECRETS.get(name, "made-up")
    return settings, environment


def main(hub: str, helm: str) -> int:
    checked = failed = 0
    for values in sorted(CHART.glob("ci/*-values.yaml")):
        settings, environment = rendered(helm, values)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "hub.toml"
            file.write_text(settings)
            check = subprocess.run(
                [hub, "config", "check"],
                env={**os.environ, **environment, "HUB_CONFIG": str(file)},
                capture_output=True,
                text=True,
                timeout=60,
            )
        checked += 1
        if check.returncode == 0:
            print(f"{values.name}: valid")
        else:
            failed += 1
            print(f"{values.name}: rejected by the hub:\n{check.stdout}{check.stderr}\n{settings}")
    if checked == 0:
        print(f"no values files in {CHART / 'ci'}")
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
