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
{{- range $section, $value := mustMergeOverwrite (deepCopy .Values.settings) $listen }}
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
{{- range $key := list "password" "token" -}}
{{- if get $nats $key -}}
{{- fail (printf "settings.nats.%s: a ConfigMap must not contain a secret; put it into a Secret and name that in nats.auth" $key) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "token" "listen_token" -}}
{{- if get ($.Values.settings.subscriptions | default dict) $key -}}
{{- fail (printf "settings.subscriptions.%s: a ConfigMap must not contain a secret; set it in the environment (HUB__SUBSCRIPTIONS__%s) from a Secret" $key (upper $key)) -}}
{{- end -}}
{{- end -}}
{{- if (.Values.settings.secrets | default dict).master_key -}}
{{- fail "settings.secrets.master_key: a ConfigMap must not contain a secret; put it into a Secret and name that in masterKey" -}}
{{- end -}}
{{- if (.Values.settings.secrets | default dict).previous_keys -}}
{{- fail "settings.secrets.previous_keys: a ConfigMap must not contain a secret; put it into a Secret and name that in extraEnv as HUB__SECRETS__PREVIOUS_KEYS" -}}
{{- end -}}
{{- if (.Values.settings.outbox | default dict).database_url -}}
{{- fail "settings.outbox.database_url: a ConfigMap must not contain a secret; put it into a Secret and name that in outbox" -}}
{{- end -}}
{{- range $key := list "grpc_url" -}}
{{- if contains "@" (toString (get ($.Values.settings.subscriptions | default dict) $key)) -}}
{{- fail (printf "settings.subscriptions.%s: the URL contains a user or password, and a ConfigMap must not contain a secret; set settings.subscriptions.token in the environment (HUB__SUBSCRIPTIONS__TOKEN) from a Secret" $key) -}}
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
{{- fail (printf "settings.external_brokers: %s has a %s in plain text, and a ConfigMap must not contain a secret; seal it (`hub secrets seal external_brokers.%s.%s`), or set it in the environment (HUB__EXTERNAL_BROKERS) from a Secret" $broker.name $key $broker.name $key) -}}
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
{{- if le (int .Values.terminationGracePeriodSeconds) $grace -}}
{{- fail (printf "terminationGracePeriodSeconds: %d must be more than settings.delivery.grace (%d s), otherwise deliveries in flight are aborted and sent twice; increase it" (int .Values.terminationGracePeriodSeconds) $grace) -}}
{{- end -}}
{{- end -}}
