{{/*
hub.toml from .Values.settings: a table for each section, an array of tables for
a list of tables (domains). Values are written as JSON, which is valid TOML for
strings, numbers, booleans and lists. Helm's toToml writes whole numbers as
floats (`replicas = 3.0`), which the hub rejects.
*/}}
{{- define "integration-hub.toml" -}}
{{- $api := dict "listen" (printf "0.0.0.0:%d" (int .Values.port)) -}}
{{- $health := dict "listen" (printf "0.0.0.0:%d" (int .Values.healthPort)) -}}
{{- $listen := dict "api" $api "health" $health -}}
{{- $settings := deepCopy .Values.settings -}}
{{- if or .Values.ingress.enabled .Values.httpRoute.enabled -}}
{{- /* All callers have the address of the proxy, so limits per address are off unless the settings have them. */ -}}
{{- $proxied := dict "connections_per_peer" 0 "requests_per_peer" 0 "unknown_tokens_per_peer" 0 -}}
{{- $settings = mustMergeOverwrite (dict "api" $proxied) $settings -}}
{{- end -}}
{{- range $section, $value := mustMergeOverwrite $settings $listen }}
{{- if kindIs "slice" $value }}
{{- range $value }}
[[{{ $section }}]]
{{- include "integration-hub.toml.keys" (dict "section" $section "table" .) }}
{{ end }}
{{- else if $value }}
[{{ $section }}]
{{- include "integration-hub.toml.keys" (dict "section" $section "table" $value) }}
{{ end }}
{{- end }}
{{- end -}}

{{/* One line for each key, each after a line break. Takes a dict: section, table. */}}
{{- define "integration-hub.toml.keys" -}}
{{- $section := .section -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value -}}
{{- fail (printf "settings.%s.%s: is a table; write a string, a number, a boolean or a list" $section $key) -}}
{{- end -}}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ toRawJson $value }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds of a duration in the hub's format ("20s", "1m 30s"), rounded down. */}}
{{- define "integration-hub.seconds" -}}
{{- $total := 0 -}}
{{- range regexFindAll "[0-9]+ *(ms|s|m|h)" (toString .) -1 -}}
{{- $number := regexFind "[0-9]+" . | int -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- if eq $unit "s" }}{{ $total = add $total $number }}{{ end -}}
{{- if eq $unit "m" }}{{ $total = add $total (mul 60 $number) }}{{ end -}}
{{- if eq $unit "h" }}{{ $total = add $total (mul 3600 $number) }}{{ end -}}
{{- end -}}
{{- $total -}}
{{- end -}}

{{/* Rules between values, which a schema cannot express. Prints nothing, or fails with the remedy. */}}
{{- define "integration-hub.check" -}}
{{- $nats := .Values.settings.nats | default dict -}}
{{- $auth := .Values.nats.auth -}}
{{- if contains "@" (toString $nats.url) -}}
{{- fail "settings.nats.url: contains a user or password, and a ConfigMap must not contain a secret; set settings.nats.user, put the password into a Secret, and name that in nats.auth" -}}
{{- end -}}
{{- if and $nats.url (not (regexMatch "^((nats|tls)://[^,@]+)(,(nats|tls)://[^,@]+)*$" (toString $nats.url))) -}}
{{- fail (printf "settings.nats.url: %q is not valid; write nats://host:port or tls://host:port, several separated by commas" $nats.url) -}}
{{- end -}}
{{- range $key := list "password" "token" -}}
{{- if get $nats $key -}}
{{- fail (printf "settings.nats.%s: a ConfigMap must not contain a secret; put it into a Secret and name that in nats.auth" $key) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "token" "listen_token" -}}
{{- if get ($.Values.settings.subscriptions | default dict) $key -}}
{{- fail (printf "settings.subscriptions.%s: a ConfigMap must not contain a secret; put it into a Secret and name that in resolver.%s" $key (ternary "listenToken" "token" (eq $key "listen_token"))) -}}
{{- end -}}
{{- end -}}
{{- if (.Values.settings.secrets | default dict).master_key -}}
{{- fail "settings.secrets.master_key: a ConfigMap must not contain a secret; put it into a Secret and name that in masterKey" -}}
{{- end -}}
{{- if (.Values.settings.secrets | default dict).previous_keys -}}
{{- fail "settings.secrets.previous_keys: a ConfigMap must not contain a secret; put them into a Secret and name that in masterKey.previousKeys" -}}
{{- end -}}
{{- if (.Values.settings.outbox | default dict).database_url -}}
{{- fail "settings.outbox.database_url: a ConfigMap must not contain a secret; put it into a Secret and name that in outbox" -}}
{{- end -}}
{{- range $key := list "grpc_url" -}}
{{- if contains "@" (toString (get ($.Values.settings.subscriptions | default dict) $key)) -}}
{{- fail (printf "settings.subscriptions.%s: the URL contains a user or password, and a ConfigMap must not contain a secret; put the token into a Secret and name that in resolver.token" $key) -}}
{{- end -}}
{{- end -}}
{{- range .Values.settings.external_brokers -}}
{{- $broker := . -}}
{{- if contains "@" (toString $broker.url) -}}
{{- fail (printf "settings.external_brokers: the url of %s contains a user or password, and a ConfigMap must not contain a secret; set user, and the sealed password (`hub secrets seal external_brokers.%s.password`)" $broker.name $broker.name) -}}
{{- end -}}
{{- range $key := list "password" "token" -}}
{{- $secret := get $broker $key -}}
{{- if and $secret (not (hasPrefix "sealed:" (toString $secret))) -}}
{{- fail (printf "settings.external_brokers: %s has a %s in plain text, and a ConfigMap must not contain a secret; seal it (`hub secrets seal external_brokers.%s.%s`), or put it into a Secret and name that in externalBrokers" $broker.name $key $broker.name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if (.Values.settings.api | default dict).listen -}}
{{- fail "settings.api.listen: is derived from `port`; set port" -}}
{{- end -}}
{{- if (.Values.settings.health | default dict).listen -}}
{{- fail "settings.health.listen: is derived from `healthPort`; set healthPort" -}}
{{- end -}}
{{- if eq (int .Values.port) (int .Values.healthPort) -}}
{{- fail (printf "healthPort: %d is also the value of port; set another port" (int .Values.healthPort)) -}}
{{- end -}}
{{- if and (ne $auth.method "none") (not $auth.existingSecret) -}}
{{- fail (printf "nats.auth.existingSecret: is required by method %q; set the name of an existing Secret" $auth.method) -}}
{{- end -}}
{{- if and (eq $auth.method "none") $auth.existingSecret -}}
{{- fail "nats.auth.method: must not be none, because existingSecret is set; set password, token, credentials or nkey" -}}
{{- end -}}
{{- if and (eq $auth.method "password") (not $nats.user) -}}
{{- fail "settings.nats.user: is required by method \"password\"; set the user name" -}}
{{- end -}}
{{- if ne (empty .Values.nats.tls.certKey) (empty .Values.nats.tls.keyKey) -}}
{{- fail "nats.tls: certKey and keyKey require each other; set both or neither" -}}
{{- end -}}
{{- if and .Values.nats.tls.certKey (not .Values.nats.tls.existingSecret) -}}
{{- fail "nats.tls.existingSecret: is required by certKey and keyKey; set the name of an existing Secret" -}}
{{- end -}}
{{- $grace := include "integration-hub.seconds" ((.Values.settings.delivery | default dict).grace | default "20s") | int -}}
{{- if and .Values.terminationGracePeriodSeconds (le (int .Values.terminationGracePeriodSeconds) $grace) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d must be more than settings.delivery.grace (%d s), otherwise deliveries in flight are aborted and sent twice; increase it, or remove it to derive it from the settings" (int .Values.terminationGracePeriodSeconds) $grace) -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.podMonitor.enabled -}}
{{- fail "podMonitor.enabled: is set together with serviceMonitor.enabled, so that every metric is read twice; disable one of them" -}}
{{- end -}}
{{- include "integration-hub.checkNames" . -}}
{{- include "integration-hub.checkRoles" . -}}
{{- include "integration-hub.checkRoutes" . -}}
{{- include "integration-hub.verifySecrets" . -}}
{{- end -}}

{{/* Names that the chart uses itself. */}}
{{- define "integration-hub.checkNames" -}}
{{- if eq (int .Values.service.port) (int .Values.service.healthPort) -}}
{{- fail (printf "service.healthPort: %d is also the value of service.port; set another port" (int .Values.service.healthPort)) -}}
{{- end -}}
{{- if eq (int .Values.resolver.port) (int .Values.healthPort) -}}
{{- fail (printf "resolver.port: %d is also the value of healthPort; set another port" (int .Values.resolver.port)) -}}
{{- end -}}
{{- range $volume := .Values.extraVolumes -}}
{{- if has $volume.name (list "settings" "nats-auth" "nats-tls" "test") -}}
{{- fail (printf "extraVolumes: %s is a volume of the chart; use another name" $volume.name) -}}
{{- end -}}
{{- end -}}
{{- $all := dict -}}
{{- include "integration-hub.workloads" (dict "root" . "into" $all) -}}
{{- $labels := list (dict "value" "commonLabels" "labels" .Values.commonLabels) -}}
{{- range $all.items -}}
{{- $labels = append $labels (dict "value" "podLabels" "labels" .values.podLabels) -}}
{{- range $key := keys (.values.podLabels | default dict) -}}
{{- if hasKey $.Values.commonLabels $key -}}
{{- fail (printf "podLabels: %s is also in commonLabels; remove one of them" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $labels -}}
{{- $value := .value -}}
{{- range $key := keys .labels -}}
{{- if or (hasPrefix "integration-hub/" $key) (has $key (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart")) -}}
{{- fail (printf "%s: %s is a label of the chart; use another one" $value $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "integration-hub.checkRoles" -}}
{{- range $name, $role := omit .Values.roles "split" -}}
{{- if and (not $.Values.roles.split) (or (omit $role "enabled" "perDomain" "domains") $role.perDomain $role.domains) -}}
{{- fail (printf "roles.%s: has no effect, because one Deployment runs every role; set roles.split to true" $name) -}}
{{- end -}}
{{- if and (($role.nats | default dict).auth) (eq $.Values.nats.auth.method "none") -}}
{{- fail (printf "roles.%s.nats.auth: has no effect, because nats.auth.method is none; set password, token, credentials or nkey" $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.roles.split .Values.roles.subscriptionResolver.enabled (not .Values.resolver.listenToken.existingSecret) (not (.Values.settings.subscriptions | default dict).listen_anonymous) -}}
{{- fail "resolver.listenToken.existingSecret: is required by roles.subscriptionResolver; set the name of an existing Secret, or settings.subscriptions.listen_anonymous to true" -}}
{{- end -}}
{{- $all := dict -}}
{{- include "integration-hub.workloads" (dict "root" . "into" $all) -}}
{{- if not $all.items -}}
{{- fail "roles: no role is enabled; enable one" -}}
{{- end -}}
{{- range $all.items -}}
{{- if and .keda (not .values.keda.monitoring.endpoint) -}}
{{- fail (printf "keda.monitoring.endpoint: is required to scale %s; set the address of the monitoring port of NATS, for example nats-headless.nats.svc:8222" .name) -}}
{{- end -}}
{{- if and .values.autoscaling.enabled (not (or .values.autoscaling.targetCPUUtilizationPercentage .values.autoscaling.targetMemoryUtilizationPercentage .values.autoscaling.metrics)) -}}
{{- fail (printf "autoscaling: no metric is set for %s; set targetCPUUtilizationPercentage, targetMemoryUtilizationPercentage or metrics" .name) -}}
{{- end -}}
{{- if and .values.preStopSleepSeconds (semverCompare "<1.30.0-0" $.Capabilities.KubeVersion.Version) -}}
{{- fail (printf "preStopSleepSeconds: requires Kubernetes 1.30 or newer, but this cluster has %s; set it to 0" $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- $deadline := include "integration-hub.seconds" (($.Values.settings.delivery | default dict).grace | default "20s") | int | add (int .values.preStopSleepSeconds) | int -}}
{{- if le (include "integration-hub.terminationGracePeriod" (dict "root" $ "workload" .) | int) $deadline -}}
{{- fail (printf "terminationGracePeriodSeconds: must be more than preStopSleepSeconds and settings.delivery.grace together (%d s); increase it, or remove it to derive it from the settings" $deadline) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "integration-hub.checkRoutes" -}}
{{- range $name := list "ingress" "httpRoute" -}}
{{- if and (get $.Values $name).enabled $.Values.roles.split (not $.Values.roles.api.enabled) -}}
{{- fail (printf "%s.enabled: requires the API, but roles.api.enabled is false; enable the role" $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: is required; set the host name of the API" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: is required; set the Gateway, for example [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- end -}}

{{/* The ports of the servers in settings.nats.url, as a JSON list. */}}
{{- define "integration-hub.natsPorts" -}}
{{- $ports := list -}}
{{- range splitList "," ((.Values.settings.nats | default dict).url | default "nats://127.0.0.1:4222") -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trim .) | trimPrefix ":" | default "4222" | int) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* "hub-alerts" of "rules/hub_alerts.yaml", for the name of an object. */}}
{{- define "integration-hub.fileSlug" -}}
{{- base . | trimSuffix (ext .) | lower | replace "." "-" | replace "_" "-" | replace " " "-" -}}
{{- end -}}
