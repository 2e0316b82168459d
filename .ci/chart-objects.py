"""Checks what the Kubernetes schemas do not know about the rendered chart.

Custom resources (monitors, rules, ScaledObject, HTTPRoute) have the fields that their operators read. Names are unique.
Selectors select what they are meant for: a Deployment its own pods only, a Service and a monitor something with the port
that they name, a scaler a Deployment without a number of replicas of its own. Every ConfigMap that a pod mounts exists. The
containers of the hub meet the pod security standard "restricted".

usage: PYTHONPATH=FOLDER_WITH_PYYAML_AND_JSONSCHEMA chart-objects.py FILE...
"""

import sys
from pathlib import Path
from typing import Any, Iterator

import jsonschema
import yaml

Object = dict[str, Any]

TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}
SELECTOR = {"type": "object", "required": ["matchLabels"], "properties": {"matchLabels": TEXTS}, "additionalProperties": False}
ANY = {"type": "object"}


def fields(required: str, optional: str = "", **schemas: Any) -> Object:
    names = required.split() + optional.split()
    return {
        "type": "object",
        "required": required.split(),
        "properties": {name: schemas.get(name, {}) for name in names},
        "additionalProperties": False,
    }


def some(items: Object) -> Object:
    return {"type": "array", "items": items, "minItems": 1}


ENDPOINT = fields(
    "port path interval scrapeTimeout", "relabelings metricRelabelings",
    port=TEXT, path=TEXT, interval=DURATION, scrapeTimeout=DURATION, relabelings=some(ANY), metricRelabelings=some(ANY),
)
RULE = {
    "oneOf": [
        fields(
            "alert expr", "for keep_firing_for labels annotations",
            alert=TEXT, expr=TEXT, **{"for": DURATION}, keep_firing_for=DURATION, labels=TEXTS, annotations=TEXTS,
        ),
        fields("record expr", "labels", record=TEXT, expr=TEXT, labels=TEXTS),
    ]
}
TRIGGER = fields(
    "type metadata", "name metricType authenticationRef useCachedMetrics",
    type=TEXT, metadata=TEXTS, authenticationRef=fields("name", "kind"),
)
JETSTREAM = fields(
    "natsServerMonitoringEndpoint account stream consumer lagThreshold", "activationLagThreshold useHttps",
    natsServerMonitoringEndpoint={"pattern": "^[^/@]+:[0-9]+$"}, stream={"pattern": "^[A-Z0-9_]+$"}, lagThreshold={"pattern": "^[0-9]+$"},
)
# The `spec` of each kind, with the fields that this chart uses.
SPECS = {
    "monitoring.coreos.com/v1 ServiceMonitor": fields(
        "selector endpoints", "podTargetLabels", selector=SELECTOR, endpoints=some(ENDPOINT), podTargetLabels=some(TEXT)
    ),
    "monitoring.coreos.com/v1 PodMonitor": fields(
        "selector podMetricsEndpoints", "podTargetLabels",
        selector=SELECTOR, podMetricsEndpoints=some(ENDPOINT), podTargetLabels=some(TEXT),
    ),
    "monitoring.coreos.com/v1 PrometheusRule": fields(
        "groups", groups=some(fields("name rules", "interval limit labels", name=TEXT, interval=DURATION, rules=some(RULE)))
    ),
    "keda.sh/v1alpha1 ScaledObject": fields(
        "scaleTargetRef minReplicaCount maxReplicaCount triggers", "pollingInterval cooldownPeriod fallback advanced",
        scaleTargetRef=fields("name", name=TEXT),
        minReplicaCount={"type": "integer", "minimum": 1}, maxReplicaCount={"type": "integer"},
        pollingInterval={"type": "integer"}, cooldownPeriod={"type": "integer"},
        fallback=fields("failureThreshold replicas"), advanced=fields("horizontalPodAutoscalerConfig"),
        triggers=some(TRIGGER),
    ),
    "gateway.networking.k8s.io/v1 HTTPRoute": fields(
        "parentRefs rules", "hostnames",
        parentRefs=some(fields("name", "namespace kind group sectionName port")), hostnames=some(TEXT),
        rules=some(fields("matches backendRefs", "filters timeouts", backendRefs=some(fields("name port", port={"type": "integer"})))),
    ),
}


def is_selected(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def ports_of(pod: Object) -> set[str]:
    return {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", [])}


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def custom_resources(objects: list[Object]) -> Iterator[str]:
    for each in objects:
        schema = SPECS.get(f"{each['apiVersion']} {each['kind']}")
        if schema is None:
            continue
        for error in jsonschema.Draft202012Validator(schema).iter_errors(each["spec"]):
            yield f"{named(each)}: spec.{'.'.join(map(str, error.path))}: {error.message}"
        for trigger in each["spec"].get("triggers", []):
            if trigger["type"] == "nats-jetstream":
                for error in jsonschema.Draft202012Validator(JETSTREAM).iter_errors(trigger["metadata"]):
                    yield f"{named(each)}: {error.message}"


def names(objects: list[Object]) -> Iterator[str]:
    seen = set()
    for each in objects:
        name = (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        if name in seen:
            yield f"{named(each)}: is rendered twice"
        seen.add(name)
        if len(each["metadata"]["name"]) > 63:
            yield f"{named(each)}: the name has more than 63 characters"


def selectors(objects: list[Object]) -> Iterator[str]:
    deployments = of_kind(objects, "Deployment")
    pods = {each["metadata"]["name"]: each["spec"]["template"] for each in deployments}
    jobs = [each["spec"]["template"] for each in of_kind(objects, "Job")] + of_kind(objects, "Pod")
    services = of_kind(objects, "Service")

    def selected(selector: dict[str, str]) -> list[str]:
        return [name for name, pod in pods.items() if is_selected(selector, pod["metadata"]["labels"])]

    for each in deployments + of_kind(objects, "PodDisruptionBudget"):
        found = selected(each["spec"]["selector"]["matchLabels"])
        if found != [each["metadata"]["name"]]:
            yield f"{named(each)}: selects the pods of {found}"
    for each in services:
        found = selected(each["spec"]["selector"])
        if not found or any(is_selected(each["spec"]["selector"], job["metadata"]["labels"]) for job in jobs):
            yield f"{named(each)}: selects no Deployment, or a Job"
        for port in each["spec"]["ports"]:
            if not all(port["targetPort"] in ports_of(pods[name]) for name in found):
                yield f"{named(each)}: not every pod of {found} has the port {port['targetPort']}"
    for each in of_kind(objects, "PodMonitor"):
        if selected(each["spec"]["selector"]["matchLabels"]) != list(pods):
            yield f"{named(each)}: does not select every Deployment"
    for each in of_kind(objects, "ServiceMonitor"):
        selector = each["spec"]["selector"]["matchLabels"]
        found = [service for service in services if is_selected(selector, service["metadata"]["labels"])]
        read = [name for service in found for name in selected(service["spec"]["selector"])]
        if sorted(read) != sorted(pods):
            yield f"{named(each)}: reads {read}, not every Deployment once"
    for each in of_kind(objects, "HorizontalPodAutoscaler") + of_kind(objects, "ScaledObject"):
        target = [one for one in deployments if one["metadata"]["name"] == each["spec"]["scaleTargetRef"]["name"]]
        if len(target) != 1 or "replicas" in target[0]["spec"]:
            yield f"{named(each)}: its Deployment is missing, or has a number of replicas"
    backends = [backend for each in of_kind(objects, "HTTPRoute") for rule in each["spec"]["rules"] for backend in rule["backendRefs"]]
    for backend in backends:
        if not any(
            each["metadata"]["name"] == backend["name"] and backend["port"] in [port["port"] for port in each["spec"]["ports"]]
            for each in services
        ):
            yield f"HTTPRoute: no Service {backend['name']} with port {backend['port']}"


def mounts(objects: list[Object]) -> Iterator[str]:
    maps = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap")}
    for each in objects:
        pod = each["spec"] if each["kind"] == "Pod" else each.get("spec", {}).get("template", {}).get("spec", {})
        for volume in pod.get("volumes", []):
            name = volume.get("configMap", {}).get("name")
            if name is not None and volume["name"] in ("settings", "test") and name not in maps:
                yield f"{named(each)}: mounts the ConfigMap {name}, which is not rendered"
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod.get("containers", []) + pod.get("initContainers", []):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{named(each)}: mounts the unknown volume {mount['name']}"


def containers(objects: list[Object]) -> Iterator[str]:
    for each in objects:
        pod = each["spec"] if each["kind"] == "Pod" else each.get("spec", {}).get("template", {}).get("spec")
        if pod is None:
            continue
        context = pod.get("securityContext", {})
        if not context.get("runAsNonRoot") or context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{named(each)}: the pod may run as root, or without a filter of system calls"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{named(each)}: mounts the token of its service account"
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container.get("securityContext", {})
            is_restricted = (
                context.get("allowPrivilegeEscalation") is False
                and context.get("readOnlyRootFilesystem") is True
                and context.get("capabilities") == {"drop": ["ALL"]}
            )
            variables = [variable["name"] for variable in container.get("env", [])]
            if len(set(variables)) != len(variables):
                yield f"{named(each)}: a variable of the container {container['name']} occurs twice"
            if "integration-hub" in container["image"] and not is_restricted:
                yield f"{named(each)}: the container {container['name']} is not restricted"


def named(each: Object) -> str:
    return f"{each['kind']} {each['metadata']['name']}"


def main(files: list[str]) -> int:
    problems = 0
    for file in files:
        objects = [each for each in yaml.safe_load_all(Path(file).read_text()) if each]
        for check in (custom_resources, names, selectors, mounts, containers):
            for problem in check(objects):
                problems += 1
                print(f"{Path(file).stem}: {problem}")
    if problems == 0:
        print(f"{len(files)} files: names, selectors, references, custom resources and security contexts are right")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
