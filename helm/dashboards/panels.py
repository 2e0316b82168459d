"""Queries, panels and the grid of the Grafana dashboards that make.py writes.

Every process reports the depths and the fill of all streams, so gauges of streams are read with `max`, and gauges and
counters of a process with `sum`. Metrics of NATS are those of prometheus-nats-exporter, whose prefix is `nats` in the
chart of NATS, and `jetstream` or `gnatsd` by default.
"""

import json
from typing import Any

Panel = dict[str, Any]

GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"
# Filters of a hub and of one of its domains, and of the exporters of NATS.
HUB = 'namespace=~"$namespace"'
DOMAIN = HUB + ', domain=~"$domain"'
BROKER = HUB + ', broker=~"$broker"'
LEADER = 'job=~"$job", stream_name=~"${prefix}_.*"'
STREAM = LEADER + ', is_stream_leader="true"'
CONSUMER = LEADER + ', is_consumer_leader="true"'


def stream(name: str) -> str:
    """A metric of streams."""
    return f'{{__name__=~"(nats|jetstream)_stream_{name}", {STREAM}}}'


def consumer(name: str, more: str = "") -> str:
    """A metric of consumers."""
    return f'{{__name__=~"(nats|jetstream)_consumer_{name}", {CONSUMER}{more}}}'


def server(name: str) -> str:
    """A metric of NATS servers."""
    return f'{{__name__=~"(nats|gnatsd)_{name}", job=~"$job"}}'


def total(metric: str, by: str, where: str = HUB) -> str:
    """Occurrences per second of a counter."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def highest(metric: str, by: str, where: str = HUB) -> str:
    """A gauge that every process reports."""
    return f"max by ({by}) ({metric}{{{where}}})"


def quantile(share: float, histogram: str, where: str, by: str = "") -> str:
    labels = ", ".join(filter(None, ["le", by]))
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket{{{where}}}[$__rate_interval])))"


def success(by: str, where: str, window: str = "$__rate_interval") -> str:
    delivered = f'sum by ({by}) (rate(hub_deliveries_total{{{where}, outcome="delivered"}}[{window}]))'
    return f"{delivered} / (sum by ({by}) (rate(hub_deliveries_total{{{where}}}[{window}])) > 0)"


# Panels.


def panel(kind: str, title: str, text: str, queries: list[tuple[str, str]], unit: str, **more: Any) -> Panel:
    """`queries`: expression and legend of each. `steps`: color and lower bound of each threshold."""
    steps = more.pop("steps", None)
    colors = more.pop("colors", {})
    defaults: dict[str, Any] = {"unit": unit, "custom": more.pop("custom", {}), **more.pop("defaults", {})}
    if steps:
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": c, "value": v} for c, v in steps]}
    instant = more.pop("instant", kind in {"stat", "bargauge", "table"})
    result = {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [
                {
                    "matcher": {"id": "byName", "options": name},
                    "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
                }
                for name, color in colors.items()
            ]
            + more.pop("overrides", []),
        },
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "expr": expression,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
                "format": "table" if kind == "table" else "time_series",
            }
            for number, (expression, legend) in enumerate(queries)
        ],
        "options": more.pop("options", {}),
    }
    return result | more


def lines(title: str, text: str, queries: list[tuple[str, str]], unit: str = "short", **more: Any) -> Panel:
    """Lines over time, with the last and the highest value of each."""
    custom = {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never", **more.pop("custom", {})}
    if more.get("steps"):
        custom["thresholdsStyle"] = {"mode": "line"}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults = {"min": 0, **more.pop("defaults", {})}
    return panel("timeseries", title, text, queries, unit, custom=custom, options=options, defaults=defaults, **more)


def stacked(title: str, text: str, queries: list[tuple[str, str]], unit: str = "short", **more: Any) -> Panel:
    return lines(title, text, queries, unit, custom={"stacking": {"mode": "normal"}, "fillOpacity": 40}, **more)


def stat(title: str, text: str, expression: str, unit: str = "short", **more: Any) -> Panel:
    """One number. It is blue if it has no threshold."""
    more.setdefault("steps", [(BLUE, None)])
    options = {"colorMode": "background", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return panel("stat", title, text, [(expression, "")], unit, options=options, **more)


def bars(title: str, text: str, queries: list[tuple[str, str]], unit: str = "percent", **more: Any) -> Panel:
    options = {"orientation": "horizontal", "displayMode": "gradient", "reduceOptions": {"calcs": ["lastNotNull"]}}
    defaults = {"min": 0, "max": 100, "color": {"mode": "thresholds"}}
    return panel("bargauge", title, text, queries, unit, options=options, defaults=defaults, **more)


def heat(title: str, text: str, histogram: str, where: str) -> Panel:
    expression = f"sum by (le) (rate({histogram}_bucket{{{where}}}[$__rate_interval]))"
    options = {"calculate": False, "color": {"scheme": "Oranges"}, "yAxis": {"unit": "s"}, "cellGap": 1}
    result = panel("heatmap", title, text, [(expression, "{{le}}")], "s", options=options)
    result["targets"][0]["format"] = "heatmap"
    return result


def states(title: str, text: str, queries: list[tuple[str, str]], names: dict[int, tuple[str, str]]) -> Panel:
    """A colored bar over time for each series; `names` has the text and the color of each value."""
    options = {str(value): {"text": text, "color": color} for value, (text, color) in names.items()}
    defaults = {"mappings": [{"type": "value", "options": options}]}
    custom = {"fillOpacity": 70, "lineWidth": 0}
    return panel(
        "state-timeline", title, text, queries, "none", custom=custom, defaults=defaults,
        options={"showValue": "never", "mergeValues": True, "legend": {"displayMode": "list", "placement": "bottom"}},
    )


# Of a table: expression, heading, unit and thresholds of a column.
Column = tuple[str, str, str, list[tuple[str, float | None]] | None]


def table(title: str, text: str, keys: dict[str, str], columns: list[Column], links: dict[str, str]) -> Panel:
    """One row for each value of the labels `keys`, which have a heading each. `links`: a label and its dashboard."""
    overrides = []
    for _, heading, unit, steps in columns:
        properties: list[dict[str, Any]] = [{"id": "unit", "value": unit}]
        if steps:
            colors = [{"color": color, "value": value} for color, value in steps]
            properties.append({"id": "thresholds", "value": {"mode": "absolute", "steps": colors}})
            properties.append({"id": "custom.cellOptions", "value": {"type": "color-background", "mode": "basic"}})
        overrides.append({"matcher": {"id": "byName", "options": heading}, "properties": properties})
    for label, target in links.items():
        url = f"/d/{target}?${{__url_time_range}}&var-{label}=${{__value.text}}&${{namespace:queryparam}}&${{datasource:queryparam}}"
        link = {"title": "Show", "url": url}
        heading = keys[label]
        overrides.append(
            {"matcher": {"id": "byName", "options": heading}, "properties": [{"id": "links", "value": [link]}]}
        )
    # As Grafana names the values of one query, and of several.
    values = [f"Value #{chr(ord('A') + number)}" for number in range(len(columns))] if len(columns) > 1 else ["Value"]
    renamed = {value: heading for value, (_, heading, _, _) in zip(values, columns)} | keys
    order = {name: number for number, name in enumerate([*keys, *values])}
    return panel(
        "table", title, text, [(expression, "") for expression, _, _, _ in columns], "short",
        overrides=overrides,
        options={"cellHeight": "sm", "showHeader": True},
        transformations=[
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                # Grafana adds the time of the query as a column.
                "options": {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": renamed},
            },
        ],
    )


# Dashboards.


def variable(name: str, label: str, query: str, *, regex: str = "", multi: bool = True) -> dict[str, Any]:
    every = {"selected": True, "text": ["All"], "value": ["$__all"]} if multi else {}
    return {
        "type": "query", "name": name, "label": label, "regex": regex, "multi": multi, "includeAll": multi,
        "allValue": ".*" if multi else None, "current": every, "refresh": 2, "sort": 1,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": "variable"}, "definition": query,
    }


DATASOURCE = {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "current": {}}
NAMESPACE = variable("namespace", "Namespace", "label_values(hub_subscriptions, namespace)")
DOMAINS = variable("domain", "Domain", f"label_values(hub_outbox_depth{{{HUB}}}, domain)")
BROKERS = variable("broker", "Broker", f"label_values(hub_relay_open_rows{{{HUB}}}, broker)")
JOB = variable("job", "Job of the exporters", 'label_values({__name__=~"(nats|gnatsd)_varz_cpu"}, job)')
PREFIX = {
    "type": "textbox", "name": "prefix", "label": "nats.prefix in upper case", "query": "HUB",
    "current": {"text": "HUB", "value": "HUB"}, "options": [{"text": "HUB", "value": "HUB", "selected": True}],
}


class Dashboard:
    """Panels from left to right and from top to bottom, in a grid of 24 columns."""

    def __init__(self, name: str, title: str, text: str, variables: list[dict[str, Any]]) -> None:
        self.name, self.title, self.text, self.variables = name, title, text, variables
        self.panels: list[Panel] = []
        self.x = self.y = self.height = 0

    def row(self, title: str) -> None:
        self.line()
        self.panels.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": self.y, "w": 24, "h": 1}}
        )
        self.y += 1

    def line(self) -> None:
        self.x, self.y, self.height = 0, self.y + self.height, 0

    def add(self, width: int, height: int, *panels: Panel) -> None:
        for one in panels:
            if self.x + width > 24:
                self.line()
            self.panels.append(one | {"gridPos": {"x": self.x, "y": self.y, "w": width, "h": height}})
            self.x, self.height = self.x + width, max(self.height, height)

    def for_each_domain(self, height: int, one: Panel) -> None:
        """Grafana repeats the panel, four in a line."""
        self.line()
        repeated = one | {"repeat": "domain", "repeatDirection": "h", "maxPerRow": 4}
        self.panels.append(repeated | {"gridPos": {"x": 0, "y": self.y, "w": 6, "h": height}})
        self.y += height

    def json(self) -> str:
        for number, one in enumerate(self.panels, 1):
            one["id"] = number
        links = {
            "type": "dashboards", "tags": ["integration-hub"], "title": "Integration Hub", "asDropdown": True,
            "includeVars": True, "keepTime": True, "icon": "external link", "targetBlank": False,
        }
        document = {
            "uid": self.name, "title": self.title, "description": self.text, "tags": ["integration-hub"],
            "schemaVersion": 39, "version": 1, "editable": True, "graphTooltip": 1, "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"}, "timezone": "browser", "links": [links],
            "templating": {"list": [DATASOURCE, *self.variables]}, "panels": self.panels,
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
