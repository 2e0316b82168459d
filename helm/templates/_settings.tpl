{{/*
hub.toml from .Values.settings: a table for each section, an array of tables for
a list of them (domains). Every value is written as JSON, which TOML reads
alike for strings, numbers, booleans and lists; Helm's own toToml writes whole
numbers as floats (`replicas = 3.0`), which the hub refuses.
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

{{/* One line for each key, each with a line break before it. Takes a dict: section, table. */}}
{{- define "integration-hub.toml.keys" -}}
{{- $section := .section -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value -}}
{{- fail (printf "settings.%s.%s: is a table; a setting is a string, a number, a boolean or a list" $section $key) -}}
{{- end -}}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ toRawJson $value }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds of a duration as the hub writes it ("20s", "1m 30s"), rounded down. */}}
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

{{/* What the schema cannot say: rules between values. Prints nothing, or fails with the remedy. */}}
{{- define "integration-hub.check" -}}
{{- $nats := .Values.settings.nats | default dict -}}
{{- $auth := .Values.nats.auth -}}
{{- range $key := list "password" "token" -}}
{{- if get $nats $key -}}
{{- fail (printf "settings.nats.%s: settings go into a ConfigMap, which is no place for a secret; put it into a Secret and name that in nats.auth" $key) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "token" "listen_token" -}}
{{- if get ($.Values.settings.subscriptions | default dict) $key -}}
{{- fail (printf "settings.subscriptions.%s: settings go into a ConfigMap, which is no place for a secret; give it in the environment (HUB__SUBSCRIPTIONS__%s) from a Secret" $key (upper $key)) -}}
{{- end -}}
{{- end -}}
{{- if (.Values.settings.secrets | default dict).master_key -}}
{{- fail "settings.secrets.master_key: settings go into a ConfigMap, which is no place for a secret; put it into a Secret and name that in masterKey" -}}
{{- end -}}
{{- if (.Values.settings.secrets | default dict).previous_keys -}}
{{- fail "settings.secrets.previous_keys: settings go into a ConfigMap, which is no place for a secret; put it into a Secret and name that in extraEnv as HUB__SECRETS__PREVIOUS_KEYS" -}}
{{- end -}}
{{- if (.Values.settings.outbox | default dict).database_url -}}
{{- fail "settings.outbox.database_url: settings go into a ConfigMap, which is no place for a secret; put it into a Secret and name that in outbox" -}}
{{- end -}}
{{- range $key := list "grpc_url" -}}
{{- if contains "@" (toString (get ($.Values.settings.subscriptions | default dict) $key)) -}}
{{- fail (printf "settings.subscriptions.%s: has a user or password in the URL, and settings go into a ConfigMap, which is no place for a secret; give settings.subscriptions.token in the environment (HUB__SUBSCRIPTIONS__TOKEN) from a Secret" $key) -}}
{{- end -}}
{{- end -}}
{{- range .Values.settings.external_brokers -}}
{{- $broker := . -}}
{{- if contains "@" (toString $broker.url) -}}
{{- fail (printf "settings.external_brokers: the url of %s has a user or password in it, and settings go into a ConfigMap, which is no place for a secret; write user, and the password sealed (`hub secrets seal external_brokers.%s.password`)" $broker.name $broker.name) -}}
{{- end -}}
{{- range $key := list "password" "token" -}}
{{- $secret := get $broker $key -}}
{{- if and $secret (not (hasPrefix "sealed:" (toString $secret))) -}}
{{- fail (printf "settings.external_brokers: %s has a %s in clear, and settings go into a ConfigMap, which is no place for a secret; seal it (`hub secrets seal external_brokers.%s.%s`), or give it in the environment (HUB__EXTERNAL_BROKERS) from a Secret" $broker.name $key $broker.name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if (.Values.settings.api | default dict).listen -}}
{{- fail "settings.api.listen: follows from `port`, which the Service shares; set that" -}}
{{- end -}}
{{- if (.Values.settings.health | default dict).listen -}}
{{- fail "settings.health.listen: follows from `healthPort`, which Service and probes share; set that" -}}
{{- end -}}
{{- if eq (int .Values.port) (int .Values.healthPort) -}}
{{- fail (printf "healthPort: is %d, as port is; health needs a port of its own" (int .Values.healthPort)) -}}
{{- end -}}
{{- if and (ne $auth.method "none") (not $auth.existingSecret) -}}
{{- fail (printf "nats.auth.existingSecret: method %q needs the name of an existing Secret" $auth.method) -}}
{{- end -}}
{{- if and (eq $auth.method "none") $auth.existingSecret -}}
{{- fail "nats.auth.method: a Secret is named but the method is none; say password, token, credentials or nkey" -}}
{{- end -}}
{{- if and (eq $auth.method "password") (not $nats.user) -}}
{{- fail "settings.nats.user: method \"password\" needs the user's name" -}}
{{- end -}}
{{- if ne (empty .Values.nats.tls.certKey) (empty .Values.nats.tls.keyKey) -}}
{{- fail "nats.tls: certKey and keyKey go together; give both or neither" -}}
{{- end -}}
{{- if and .Values.nats.tls.certKey (not .Values.nats.tls.existingSecret) -}}
{{- fail "nats.tls.existingSecret: certKey and keyKey need the name of an existing Secret" -}}
{{- end -}}
{{- $grace := include "integration-hub.seconds" ((.Values.settings.delivery | default dict).grace | default "20s") | int -}}
{{- if le (int .Values.terminationGracePeriodSeconds) $grace -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is not more than settings.delivery.grace (%d s); deliveries would be cut off in flight and sent twice" (int .Values.terminationGracePeriodSeconds) $grace) -}}
{{- end -}}
{{- end -}}
