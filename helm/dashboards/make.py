#!/usr/bin/env python3
"""Writes the Grafana dashboards of this folder, one JSON file each.

usage: make.py [--check]    (--check writes nothing, and exits with 1 if a file differs)
"""

import sys
from pathlib import Path

sys.dont_write_bytecode = True

from panels import (  # noqa: E402
    BLUE, BROKER, BROKERS, DOMAIN, DOMAINS, GREEN, HUB, JOB, NAMESPACE, ORANGE, PREFIX, RED, YELLOW,
    Dashboard, bars, consumer, heat, highest, lines, quantile, server, stacked, stat, states, stream, success, table,
    total, variable,
)

FOLDER = Path(__file__).parent

# Thresholds: color and lower bound.
NONE_IS_GOOD = [(GREEN, None), (RED, 1)]
FILL = [(GREEN, None), (YELLOW, 60), (ORANGE, 80), (RED, 95)]
RATIO = [(RED, None), (ORANGE, 0.8), (YELLOW, 0.95), (GREEN, 0.99)]
LETTERS = [(GREEN, None), (YELLOW, 1), (ORANGE, 100), (RED, 1000)]
LATE = [(GREEN, None), (YELLOW, 60), (ORANGE, 300), (RED, 900)]
OUTCOMES = {"delivered": GREEN, "retried": YELLOW, "exhausted": ORANGE, "dead-lettered": RED}
DELIVERED = DOMAIN + ', outcome="delivered"'
LANES = ', consumer_name=~"$lane"'
SHARED = DOMAIN + ', lane="shared"'
OLD_LETTERS = [(GREEN, None), (YELLOW, 21600), (ORANGE, 86400)]
PROCESS = f"and on (namespace, job, instance) hub_subscriptions{{{HUB}}}"


def share(name: str, limit: str) -> str:
    """Percent of a limit that streams have used; nothing for a stream without this limit (-1)."""
    return f"100 * max by (stream_name) ({stream(name)}) / max by (stream_name) ({stream(limit)} > 0)"


def drain_time(where: str = DOMAIN) -> str:
    rate = f'sum by (domain) (rate(hub_deliveries_total{{{where}, outcome="delivered"}}[10m]))'
    return f"{highest('hub_outbox_depth', 'domain', where)} / ({rate} > 0)"


def overview() -> Dashboard:
    page = Dashboard(
        "hub-overview", "Integration Hub / Overview",
        "All domains with their dead letters, and what needs attention.", [NAMESPACE, DOMAINS],
    )
    page.add(
        3, 3,
        stat("Processes", "Hub processes that Prometheus reads.", f"count(hub_subscriptions{{{HUB}}})",
             steps=[(RED, None), (GREEN, 1)]),
        stat("Subscriptions", "Subscriptions in the index of the processes.", f"max(hub_subscriptions{{{HUB}}})"),
        stat("Events", "Events that the event processors read, per second.",
             f"sum(rate(hub_events_total{{{HUB}}}[5m]))", "ops"),
        stat("Deliveries", "Delivered envelopes per second.",
             f'sum(rate(hub_deliveries_total{{{HUB}, outcome="delivered"}}[5m]))', "ops"),
        stat("Success", "Share of the attempts of the last 30 minutes that delivered their envelope.",
             f'sum(rate(hub_deliveries_total{{{HUB}, outcome="delivered"}}[30m])) / '
             f"(sum(rate(hub_deliveries_total{{{HUB}}}[30m])) > 0)", "percentunit", steps=RATIO),
        stat("Events waiting", "Events in HUB_EVENTS that are not processed yet.", f"max(hub_events_depth{{{HUB}}})",
             steps=[(GREEN, None), (YELLOW, 100), (RED, 10000)]),
        stat("Rejected", "Publications of the last 24 hours that the hub could not process. They are in HUB_REJECTED.",
             f"sum(increase(hub_events_rejected_total{{{HUB}}}[24h])) or vector(0)",
             defaults={"decimals": 0}, steps=[(GREEN, None), (ORANGE, 1)]),
        stat("Full streams", "Streams that reject messages, because they have no room.",
             f"count(max by (stream) (hub_stream_full{{{HUB}}}) > 0) or vector(0)", steps=NONE_IS_GOOD),
    )
    page.line()
    page.add(24, 6, table(
        "Domains", "One row for each domain. Follow the link of a domain to its own dashboard.",
        {"domain": "Domain"},
        [
            (total("hub_events_total", "domain", DOMAIN).replace("$__rate_interval", "5m"), "Events", "ops", None),
            (total("hub_envelopes_total", "domain", DOMAIN).replace("$__rate_interval", "5m"), "Envelopes", "ops", None),
            (total("hub_deliveries_total", "domain", DELIVERED).replace("$__rate_interval", "5m"),
             "Delivered", "ops", None),
            (success("domain", DOMAIN, "30m"), "Success", "percentunit", RATIO),
            (highest("hub_outbox_depth", "domain", DOMAIN), "Pending", "short", None),
            (drain_time(), "Time to drain", "s", LATE),
            (highest("hub_lane_oldest_seconds", "domain", SHARED), "Oldest", "s", LATE),
            (highest("hub_domain_paused", "domain", DOMAIN), "Paused", "short", [(GREEN, None), (ORANGE, 1)]),
            (f"sum by (domain) (hub_deliveries_in_flight{{{DOMAIN}}})", "In flight", "short", None),
            (highest("hub_circuits_open", "domain", DOMAIN), "Open circuits", "short", [(GREEN, None), (ORANGE, 1)]),
            (highest("hub_fullest_backlog_percent", "domain", DOMAIN), "Fullest backlog", "percent", FILL),
            (highest("hub_dlt_depth", "domain", DOMAIN), "Dead letters", "short", LETTERS),
            (highest("hub_dlt_oldest_seconds", "domain", DOMAIN), "Oldest dead letter", "s", OLD_LETTERS),
        ],
        {"domain": "hub-domain"},
    ))
    page.for_each_domain(4, stat(
        "$domain: dead letters", "Unresolved dead letters of the domain: the depth of its dead-letter stream.",
        highest("hub_dlt_depth", "domain", DOMAIN), steps=LETTERS,
    ))
    page.for_each_domain(7, stacked(
        "$domain: attempts", "Attempts to deliver an envelope, per second, by outcome.",
        [(total("hub_deliveries_total", "outcome", DOMAIN), "{{outcome}}")], "ops", colors=OUTCOMES,
    ))
    page.for_each_domain(6, lines(
        "$domain: pending", "Envelopes in the domain outbox that are not delivered yet, and unresolved dead letters.",
        [(highest("hub_outbox_depth", "domain", DOMAIN), "pending"),
         (highest("hub_dlt_depth", "domain", DOMAIN), "dead letters")],
        colors={"pending": BLUE, "dead letters": RED},
    ))
    page.row("What needs attention")
    alert = "alertname, severity, domain, stream, broker, reason"
    page.add(24, 6, table(
        "Firing alerts", "Alerts of helm/rules/hub.yaml that fire. docs/alerts.md has a runbook for each.",
        {"alertname": "Alert", "severity": "Severity", "domain": "Domain", "stream": "Stream", "broker": "Broker",
         "reason": "Reason"},
        [(f'count by ({alert}) (ALERTS{{alertname=~"Hub.+", alertstate="firing"}})', "Number", "short", None)], {},
    ))
    page.line()
    page.add(
        8, 8,
        bars("Fill of the streams", "How full the streams are that reject messages when they are full.",
             [(highest("hub_stream_used_percent", "stream"), "{{stream}}")], steps=FILL),
        lines("New dead letters", "Envelopes that became dead letters, per second, by reason.",
              [(total("hub_dead_lettered_total", "reason", DOMAIN) + " > 0", "{{reason}}")], "ops"),
        lines("Rejected events", "Publications that the hub could not process, per second, by reason.",
              [(total("hub_events_rejected_total", "reason") + " > 0", "{{reason}}")], "ops"),
        lines("Failed attempts", "Failed attempts per second, by the side at fault and the kind of failure.",
              [(total("hub_failures_total", "fault, kind", DOMAIN) + " > 0", "{{fault}}: {{kind}}")], "ops"),
        lines("Circuits and holds", "Open circuits, and subscriptions whose endpoint asked for a pause (Retry-After).",
              [(highest("hub_circuits_open", "domain", DOMAIN), "open circuits: {{domain}}"),
               (f"max(hub_subscriptions_held{{{HUB}}})", "held subscriptions")]),
        lines("Registry and dead-letter storage",
              "Unreadable registry entries, domains whose dead letters cannot be stored, and strict lanes without a "
              "consumer. All are 0 in normal operation.",
              [(highest("hub_registry_unreadable_entries", "in_force"), "unreadable entries: {{in_force}}"),
               (highest("hub_dlt_blocked", "domain", DOMAIN), "dead letters blocked: {{domain}}"),
               (highest("hub_strict_lanes_missing", "domain", DOMAIN), "strict lanes missing: {{domain}}")]),
        lines("Oldest event and envelope", "Age of the oldest event in HUB_EVENTS, and of the oldest envelope in the shared "
              "lane of each domain.",
              [(f"max(hub_events_oldest_seconds{{{HUB}}})", "event"),
               (highest("hub_lane_oldest_seconds", "domain", SHARED), "envelope: {{domain}}")], "s"),
        lines("Stranded and not routed", "Envelopes of the last hour that the sweep found, and exhausted envelopes that "
              "have no dead letter yet. All are 0 at rest.",
              [(f"sum by (domain) (increase(hub_stranded_found_total{{{DOMAIN}}}[1h]))", "stranded: {{domain}}"),
               (f'clamp_min(sum by (domain) (increase(hub_deliveries_total{{{DOMAIN}, outcome="exhausted"}}[1h])) - '
                f'sum by (domain) (increase(hub_exhausted_routed_total{{{DOMAIN}, by=~"advisory|sweep"}}[1h])), 0)',
                "not routed: {{domain}}")], defaults={"decimals": 0}),
        lines("Registry", "Keys in the registry, and revisions that a process has not read yet.",
              [(f"max(hub_registry_entries{{{HUB}}})", "keys"),
               (f"max(hub_registry_revision_lag{{{HUB}}})", "revisions not read")]),
    )
    page.row("Processes and API")
    page.add(
        8, 7,
        states("Processes", "Whether Prometheus could read the metrics of each process.",
               [(f"up{{{HUB}}} and on (namespace, job, instance) last_over_time(hub_subscriptions{{{HUB}}}[1h])",
                 "{{instance}}")], {1: ("up", GREEN), 0: ("down", RED)}),
        states("Connections", "Whether each process has a connection to the NATS server that answers.",
               [(f"hub_nats_connected{{{HUB}}}", "{{instance}}")], {1: ("connected", GREEN), 0: ("not connected", RED)}),
        lines("Not ready", "Parts of a process that are not ready.",
              [(f"count by (instance) (hub_ready{{{HUB}}} == 0) or on (instance) 0 * hub_nats_connected{{{HUB}}}",
                "{{instance}}")]),
        lines("CPU", "Cores that each process uses.",
              [(f"rate(process_cpu_seconds_total{{{HUB}}}[$__rate_interval]) {PROCESS}", "{{instance}}")]),
        lines("Memory", "Resident memory of each process.",
              [(f"process_resident_memory_bytes{{{HUB}}} {PROCESS}", "{{instance}}")], "bytes"),
        lines("Open files", "Share of the file descriptors that a process may open; connections count as files.",
              [(f"process_open_fds{{{HUB}}} / process_max_fds{{{HUB}}} {PROCESS}", "{{instance}}")], "percentunit"),
        stacked("Deliveries in flight", "Attempts in progress, by process.",
                [(f"sum by (instance) (hub_deliveries_in_flight{{{DOMAIN}}})", "{{instance}}")]),
        lines("Lost log lines", "Log lines per second that a process dropped, because their reader did not keep up.",
              [(total("hub_log_lines_lost_total", "instance"), "{{instance}}")], "ops"),
        stacked("API requests", "Requests to the HTTP API per second, by status.",
                [(total("hub_api_requests_total", "status"), "{{status}}")], "reqps"),
        lines("API latency", "99th percentile of the duration of a request, by route.",
              [(quantile(0.99, "hub_api_request_seconds", HUB, "route"), "{{route}}")], "s"),
        lines("Resolver", "Requests to a subscription resolver per second: answers, cache hits, failures, and requests of "
              "other hubs that this hub answered.",
              [(f"sum(rate(hub_resolver_answers_total{{{HUB}}}[$__rate_interval]))", "answers"),
               (f"sum(rate(hub_resolver_cache_hits_total{{{HUB}}}[$__rate_interval]))", "cache hits"),
               (total("hub_resolver_failures_total", "kind") + " > 0", "failures: {{kind}}"),
               (total("hub_resolver_served_total", "result") + " > 0", "served: {{result}}")], "reqps"),
    )
    return page


def domain() -> Dashboard:
    only = variable("domain", "Domain", f"label_values(hub_outbox_depth{{{HUB}}}, domain)", multi=False)
    page = Dashboard("hub-domain", "Integration Hub / Domain", "One domain, from events to dead letters.",
                     [NAMESPACE, only])
    page.add(
        3, 3,
        stat("Pending", "Envelopes in the domain outbox that are not delivered yet.",
             highest("hub_outbox_depth", "domain", DOMAIN)),
        stat("Time to drain", "Time that the pending envelopes take at the rate of the last 10 minutes. Empty if nothing "
             "is delivered.", drain_time(), "s", steps=LATE),
        stat("Oldest", "Age of the oldest envelope in the shared lane.",
             highest("hub_lane_oldest_seconds", "domain", SHARED), "s", steps=LATE),
        stat("Paused", "1 if the domain is paused.", highest("hub_domain_paused", "domain", DOMAIN),
             steps=[(GREEN, None), (ORANGE, 1)]),
        stat("Success", "Share of the attempts of the last 30 minutes that delivered their envelope.",
             success("domain", DOMAIN, "30m"), "percentunit", steps=RATIO),
        stat("Open circuits", "Endpoints that keep failing and get probes only.",
             highest("hub_circuits_open", "domain", DOMAIN), steps=[(GREEN, None), (ORANGE, 1)]),
        stat("Fullest backlog", "Backlog of a subscription that has used most of its quota.",
             highest("hub_fullest_backlog_percent", "domain", DOMAIN), "percent", steps=FILL),
        stat("Dead letters", "Unresolved dead letters.", highest("hub_dlt_depth", "domain", DOMAIN), steps=LETTERS),
    )
    page.row("Events")
    page.add(
        8, 8,
        lines("Events and envelopes", "Events read from HUB_EVENTS, those that no subscription matches, and envelopes "
              "written, per second.",
              [(total("hub_events_total", "domain", DOMAIN), "events"),
               (total("hub_events_unmatched_total", "domain", DOMAIN), "unmatched events"),
               (total("hub_envelopes_total", "domain", DOMAIN), "envelopes")], "ops"),
        lines("Fan-out", "Envelopes of an event: on average, and of the events with the most.",
              [(f"{total('hub_fan_out_envelopes_sum', 'domain', DOMAIN)} / "
                f"({total('hub_fan_out_envelopes_count', 'domain', DOMAIN)} > 0)", "average"),
               (quantile(0.99, "hub_fan_out_envelopes", DOMAIN), "p99")]),
        stacked("Pending envelopes", "Envelopes that are not delivered yet, by kind of lane.",
                [(highest("hub_lane_pending", "lane", DOMAIN), "{{lane}}")]),
    )
    page.row("Delivery")
    page.add(
        8, 8,
        stacked("Attempts", "Attempts to deliver an envelope, per second, by outcome.",
                [(total("hub_deliveries_total", "outcome", DOMAIN), "{{outcome}}")], "ops", colors=OUTCOMES),
        lines("Success", "Share of the attempts that delivered their envelope.",
              [(success("domain", DOMAIN), "success")], "percentunit", defaults={"max": 1}),
        stacked("Failed attempts", "Failed attempts per second, by the side at fault and the kind of failure.",
                [(total("hub_failures_total", "fault, kind", DOMAIN) + " > 0", "{{fault}}: {{kind}}")], "ops"),
        lines("Duration of an attempt", "From sending the request to the evaluated answer.",
              [(quantile(0.5, "hub_delivery_seconds", DOMAIN), "p50"),
               (quantile(0.95, "hub_delivery_seconds", DOMAIN), "p95"),
               (quantile(0.99, "hub_delivery_seconds", DOMAIN), "p99")], "s"),
        heat("Durations", "Attempts per second, by duration.", "hub_delivery_seconds", DOMAIN),
        lines("From publication to delivery", "Time from the storage of an event to its delivery, of envelopes whose first "
              "attempt succeeds, and of those that are retried.",
              [(quantile(0.5, "hub_delivered_seconds", DOMAIN + ', path="first"'), "p50 first"),
               (quantile(0.99, "hub_delivered_seconds", DOMAIN + ', path="first"'), "p99 first"),
               (quantile(0.99, "hub_delivered_seconds", DOMAIN + ', path="retried"'), "p99 retried")], "s"),
        lines("Oldest envelope", "Age of the oldest envelope that is not delivered yet, by kind of lane.",
              [(highest("hub_lane_oldest_seconds", "lane", DOMAIN), "{{lane}}")], "s"),
        lines("Tokens", "Requests of OAuth2 tokens per second, in all domains, by result.",
              [(total("hub_tokens_total", "result"), "{{result}}")], "ops",
              colors={"issued": GREEN, "refused": ORANGE, "unreachable": RED}),
        stacked("Memory", "Memory of envelopes in all processes, with what their pull requests have reserved, by lane; own: all lanes "
                "but the shared one.",
                [(f"sum by (lane) (hub_held_bytes{{{DOMAIN}}})", "{{lane}}")], "bytes"),
        stacked("Attempts by status", "Attempts per second, by class of the status.",
                [(total("hub_attempts_total", "status", DOMAIN), "{{status}}")], "ops"),
        stacked("In flight", "Attempts in progress, by process.",
                [(f"sum by (instance) (hub_deliveries_in_flight{{{DOMAIN}}})", "{{instance}}")]),
    )
    page.row("Slow and failing subscriptions")
    page.add(
        8, 8,
        lines("Open circuits", "Circuits that are open or half-open.",
              [(highest("hub_circuits_open", "domain", DOMAIN), "open")]),
        lines("Changes of circuits", "Changes per second, by the new state.",
              [(total("hub_circuit_transitions_total", "to", DOMAIN), "{{to}}")], "ops",
              colors={"open": RED, "half-open": YELLOW, "closed": GREEN}),
        lines("Own lanes", "Envelopes per second that were moved or written to the lane of a single slow subscription.",
              [(total("hub_envelopes_spilled_total", "domain", DOMAIN), "moved"),
               (total("hub_envelopes_to_own_lanes_total", "domain", DOMAIN), "written")], "ops"),
        lines("Fullest backlog", "Backlog of the subscription that has used most of its quota. The excess becomes dead "
              "letters.", [(highest("hub_fullest_backlog_percent", "domain", DOMAIN), "fullest")], "percent",
              steps=[(GREEN, None), (ORANGE, 80), (RED, 100)]),
        lines("Beyond quota", "Envelopes per second over quota that stayed in the domain outbox, because their dead "
              "letters could not be stored.", [(total("hub_envelopes_beyond_quota_total", "domain", DOMAIN), "envelopes")],
              "ops"),
        lines("Repeated work", "Envelopes per second that were published again because deliveries were used up without an "
              "attempt, and those that the broker delivered again after they were delivered.",
              [(total("hub_envelopes_published_again_total", "domain", DOMAIN), "published again"),
               (total("hub_redeliveries_settled_total", "domain", DOMAIN), "delivered again by the broker")], "ops"),
    )
    page.row("Dead letters")
    page.add(
        8, 8,
        lines("Dead letters", "Unresolved dead letters.", [(highest("hub_dlt_depth", "domain", DOMAIN), "dead letters")],
              colors={"dead letters": RED}),
        stacked("New dead letters", "Envelopes that became dead letters, per second, by reason.",
                [(total("hub_dead_lettered_total", "reason", DOMAIN) + " > 0", "{{reason}}")], "ops"),
        lines("Redrives", "Dead letters per second that were redriven or replayed, and what became of them.",
              [(total("hub_redrives_total", "outcome", DOMAIN), "{{outcome}}")], "ops"),
        stacked("Dead letters by state", "Unresolved dead letters, by state.",
                [(highest("hub_dlt_letters", "state", DOMAIN), "{{state}}")]),
        lines("Oldest dead letter", "Time since the failure of the oldest dead letter.",
              [(highest("hub_dlt_oldest_seconds", "domain", DOMAIN), "oldest")], "s", steps=OLD_LETTERS),
        lines("Exhausted envelopes", "Exhausted envelopes per second, and dead letters that were made of them, by what led "
              "to them.",
              [(total("hub_deliveries_total", "domain", DOMAIN + ', outcome="exhausted"'), "exhausted"),
               (total("hub_exhausted_routed_total", "by", DOMAIN), "{{by}}")], "ops"),
    )
    page.row("Delivery log")
    page.add(12, 7, lines(
        "Records of attempts", "Records per second that were stored in the delivery log, and those that were left out.",
        [(total("hub_attempts_logged_total", "domain", DOMAIN), "stored"),
         (total("hub_attempts_unlogged_total", "domain", DOMAIN), "left out")], "ops",
        colors={"stored": GREEN, "left out": RED},
    ))
    return page


def subscription() -> Dashboard:
    lane = variable("lane", "Lane", 'label_values({__name__=~"(nats|jetstream)_consumer_num_pending", job=~"$job", '
                    'stream_name=~"${prefix}_OUTBOX_.*"}, consumer_name)', regex="/^lane-(?:own|strict)-.*/")
    page = Dashboard(
        "hub-subscription", "Integration Hub / Subscription",
        "Subscriptions with a lane of their own: slow ones, and those in strict order. Other subscriptions share a lane; "
        "`hub subscription show ID --circuits` shows their backlog. Requires prometheus-nats-exporter.",
        [NAMESPACE, JOB, PREFIX, lane],
    )
    by = "consumer_name, stream_name"
    page.add(
        6, 3,
        stat("Own lanes", "Lanes of single subscriptions.", f"count(max by ({by}) ({consumer('num_pending', LANES)}))"
             " or vector(0)"),
        stat("Envelopes waiting in own lanes", "Envelopes that no process has read yet.",
             f"sum(max by ({by}) ({consumer('num_pending', LANES)})) or vector(0)"),
        stat("Held subscriptions", "Subscriptions whose endpoint asked for a pause (Retry-After).",
             f"max(hub_subscriptions_held{{{HUB}}})", steps=[(GREEN, None), (YELLOW, 1)]),
        stat("Open circuits", "Endpoints that keep failing and get probes only, in all domains.",
             f"sum(max by (domain) (hub_circuits_open{{{HUB}}}))", steps=[(GREEN, None), (ORANGE, 1)]),
    )
    page.line()
    name = "{{tenant}} {{subscription}} ({{domain}})"
    who = "domain, tenant, subscription"
    page.add(
        8, 8,
        lines("Backlogs", "Envelopes of the subscriptions with the most, in lanes of their own.",
              [(highest("hub_subscription_pending", who), name)]),
        lines("Oldest envelopes", "Age of the oldest envelope of the same subscriptions.",
              [(highest("hub_subscription_oldest_seconds", who), name)], "s"),
        lines("Failed attempts", "Failed attempts per second, of the subscriptions with the most.",
              [(total("hub_subscription_failed_total", who), name)], "ops"),
    )
    page.line()
    page.add(24, 9, table(
        "Lanes", "One row for each lane. The name contains tenant and id of the subscription.",
        {"consumer_name": "Lane", "stream_name": "Stream"},
        [
            (f"max by ({by}) ({consumer('num_pending', LANES)})", "Waiting", "short", None),
            (f"max by ({by}) ({consumer('num_ack_pending', LANES)})", "Unacknowledged", "short", None),
            (f"max by ({by}) ({consumer('num_redelivered', LANES)})", "Redelivered", "short", None),
            (f"sum by ({by}) (rate({consumer('delivered_consumer_seq', LANES)}[5m]))", "Attempts", "ops", None),
            (f"time() - max by ({by}) ({consumer('last_ack_seconds', LANES)})", "Since last acknowledgement", "s", LATE),
        ],
        {},
    ))
    page.add(
        12, 8,
        lines("Waiting", "Envelopes of each lane that no process has read yet.",
              [(f"max by ({by}) ({consumer('num_pending', LANES)})", "{{consumer_name}}")]),
        lines("Unacknowledged", "Envelopes of each lane that a process delivers, or that wait for their retry.",
              [(f"max by ({by}) ({consumer('num_ack_pending', LANES)})", "{{consumer_name}}")]),
        lines("Deliveries by the broker", "Envelopes per second that the broker delivered to a process, by lane.",
              [(f"sum by ({by}) (rate({consumer('delivered_consumer_seq', LANES)}[$__rate_interval]))",
                "{{consumer_name}}")], "ops"),
        lines("Acknowledged", "Envelopes per second that left the lane, delivered or dead-lettered.",
              [(f"sum by ({by}) (rate({consumer('ack_floor_consumer_seq', LANES)}[$__rate_interval]))",
                "{{consumer_name}}")], "ops"),
    )
    return page


def producer_outbox() -> Dashboard:
    page = Dashboard("hub-producer-outbox", "Integration Hub / Producer outbox",
                     "Rows of the producer outbox, by target broker.", [NAMESPACE, BROKERS])
    page.add(
        6, 3,
        stat("Open rows", "Rows that are neither sent nor abandoned.",
             f"sum(max by (broker) (hub_relay_open_rows{{{BROKER}}}))"),
        stat("Oldest row", "Age of the oldest open row.", f"max(hub_relay_oldest_seconds{{{BROKER}}})", "s", steps=LATE),
        stat("Unavailable brokers", "Target brokers that no relay can reach.",
             f"count(max by (broker) (hub_relay_broker_up{{{BROKER}}}) == 0) or vector(0)", steps=NONE_IS_GOOD),
        stat("Abandoned in 24 h", "Rows of the last 24 hours that are sent only after `hub outbox retry`.",
             f"sum(increase(hub_relay_abandoned_total{{{BROKER}}}[24h]))", defaults={"decimals": 0}, steps=[(GREEN, None), (RED, 1)]),
    )
    page.line()
    page.add(
        12, 8,
        lines("Open rows", "Rows that are neither sent nor abandoned, by broker.",
              [(highest("hub_relay_open_rows", "broker", BROKER), "{{broker}}")]),
        lines("Oldest row", "Age of the oldest open row, by broker.",
              [(highest("hub_relay_oldest_seconds", "broker", BROKER), "{{broker}}")], "s",
              steps=[(GREEN, None), (RED, 300)]),
    )
    page.add(
        8, 8,
        lines("Sent rows", "Rows per second that their broker acknowledged.",
              [(total("hub_relay_published_total", "broker", BROKER), "{{broker}}")], "ops"),
        lines("Failed attempts", "Attempts per second that the broker refused, and that are repeated.",
              [(total("hub_relay_failed_total", "broker", BROKER), "{{broker}}")], "ops"),
        lines("Abandoned rows", "Rows per second that were abandoned.",
              [(total("hub_relay_abandoned_total", "broker", BROKER), "{{broker}}")], "ops"),
        lines("Time to the broker", "From the commit of a row to the acknowledgement of its broker.",
              [(quantile(0.5, "hub_relay_lag_seconds", BROKER, "broker"), "p50 {{broker}}"),
               (quantile(0.99, "hub_relay_lag_seconds", BROKER, "broker"), "p99 {{broker}}")], "s"),
        heat("Times to the broker", "Rows per second, by the time from commit to acknowledgement.",
             "hub_relay_lag_seconds", BROKER),
        states("Brokers", "Whether at least one relay reaches the broker.",
               [(highest("hub_relay_broker_up", "broker", BROKER), "{{broker}}")],
               {1: ("available", GREEN), 0: ("unavailable", RED)}),
    )
    return page


def jetstream() -> Dashboard:
    page = Dashboard(
        "hub-jetstream", "Integration Hub / JetStream",
        "The NATS servers, and the streams and consumers of the hub. Requires prometheus-nats-exporter with the flags "
        "-varz, -connz, -healthz and -jsz=all.", [JOB, PREFIX],
    )
    page.add(
        4, 3,
        stat("Servers", "NATS servers whose exporter Prometheus reads.", f"count({server('varz_cpu')})",
             steps=[(RED, None), (GREEN, 1)]),
        stat("Unhealthy servers", "Servers whose health check fails.", f"count({server('healthz_status')} > 0) or vector(0)",
             steps=NONE_IS_GOOD),
        stat("Connections", "Client connections of all servers.", f"sum({server('varz_connections')})"),
        stat("Slow consumers", "Connections of the last hour that a server closed, because they read too slowly.",
             f"sum(increase({server('varz_slow_consumers')}[1h]))", defaults={"decimals": 0}, steps=[(GREEN, None), (ORANGE, 1)]),
        stat("JetStream storage", "Used part of the storage of the fullest server.",
             f"max(100 * {server('varz_jetstream_stats_storage')} / on (server_id) "
             f"({server('varz_jetstream_config_max_storage')} > 0))", "percent", steps=FILL),
        stat("API errors", "Errors of the JetStream API per second.",
             f"sum(rate({server('varz_jetstream_stats_api_errors')}[5m]))", "ops",
             steps=[(GREEN, None), (YELLOW, 1), (ORANGE, 10)]),
    )
    page.row("Streams")
    page.add(24, 12, table(
        "Streams", "One row for each stream of the hub.", {"stream_name": "Stream"},
        [
            (f"max by (stream_name) ({stream('total_messages')})", "Messages", "short", None),
            (f"max by (stream_name) ({stream('total_bytes')})", "Size", "bytes", None),
            (f"max by (stream_name) ({stream('limit_bytes')} > 0)", "Limit", "bytes", None),
            (share("total_bytes", "limit_bytes"), "Used bytes", "percent", FILL),
            (share("total_messages", "limit_messages"), "Used messages", "percent", FILL),
            (f"sum by (stream_name) (rate({stream('last_seq')}[5m]))", "Stored", "ops", None),
            (f"max by (stream_name) ({stream('subject_count')})", "Subjects", "short", None),
            (f"max by (stream_name) ({stream('consumer_count')})", "Consumers", "short", None),
        ],
        {},
    ))
    page.add(
        12, 8,
        lines("Stored messages", "Messages per second that a stream stored.",
              [(f"sum by (stream_name) (rate({stream('last_seq')}[$__rate_interval]))", "{{stream_name}}")], "ops"),
        lines("Messages", "Messages in each stream. For a work queue, these are the ones that are not done yet.",
              [(f"max by (stream_name) ({stream('total_messages')})", "{{stream_name}}")]),
    )
    page.row("Consumers")
    by = "stream_name, consumer_name"
    legend = "{{stream_name}} {{consumer_name}}"
    page.add(
        12, 8,
        lines("Waiting messages", "Messages that a consumer has not delivered to a process yet.",
              [(f"max by ({by}) ({consumer('num_pending')}) > 0", legend)]),
        lines("Unacknowledged messages", "Messages that a process has read and not acknowledged yet.",
              [(f"max by ({by}) ({consumer('num_ack_pending')}) > 0", legend)]),
        lines("Redelivered messages", "Unacknowledged messages that were delivered more than once.",
              [(f"max by ({by}) ({consumer('num_redelivered')}) > 0", legend)]),
        lines("Waiting pull requests", "Requests of processes that wait for messages. If this is 0 while messages wait, no "
              "process reads the consumer, or all are busy.",
              [(f"max by ({by}) ({consumer('num_waiting')})", legend)]),
    )
    page.row("Servers")
    page.add(
        8, 7,
        lines("CPU", "CPU of each server, in percent of one core.", [(server("varz_cpu"), "{{server_id}}")], "percent"),
        lines("Memory", "Resident memory of each server.", [(server("varz_mem"), "{{server_id}}")], "bytes"),
        lines("JetStream storage", "Bytes of all streams on each server, and the limit.",
              [(server("varz_jetstream_stats_storage"), "used {{server_id}}"),
               (server("varz_jetstream_config_max_storage"), "limit {{server_id}}")], "bytes"),
        lines("Messages", "Messages per second that a server received and sent.",
              [(f"sum by (server_id) (rate({server('varz_in_msgs')}[$__rate_interval]))", "received {{server_id}}"),
               (f"sum by (server_id) (rate({server('varz_out_msgs')}[$__rate_interval]))", "sent {{server_id}}")], "ops"),
        lines("JetStream API", "Requests to the JetStream API per second, and errors.",
              [(f"sum(rate({server('varz_jetstream_stats_api_total')}[$__rate_interval]))", "requests"),
               (f"sum(rate({server('varz_jetstream_stats_api_errors')}[$__rate_interval]))", "errors")], "ops"),
        lines("Connections", "Client connections of each server.", [(server("varz_connections"), "{{server_id}}")]),
    )
    return page


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    texts = {}
    for page in (overview(), domain(), subscription(), producer_outbox(), jetstream()):
        texts[f"{page.name.removeprefix('hub-')}.json"] = page.json()
    present = {file.name: file.read_text() for file in FOLDER.glob("*.json")}
    if not arguments:
        for name, text in texts.items():
            (FOLDER / name).write_text(text)
        return 0
    differs = sorted(name for name in texts.keys() | present.keys() if texts.get(name) != present.get(name))
    if differs:
        print(f"helm/dashboards: {', '.join(differs)} differ from make.py; run helm/dashboards/make.py", file=sys.stderr)
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
