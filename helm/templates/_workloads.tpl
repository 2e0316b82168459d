{{/*
The Deployments of the release. Appends a dict for each to `into.items`:

  name       of the Deployment and of what belongs to it
  component  label app.kubernetes.io/component: "hub", or the role
  role       "" for all roles
  args       of the container
  domains    whose outboxes it reads
  api, resolver, relay   whether it has these roles
  selector   labels that select its pods and no others
  values     replicas, resources and so on: those of the chart, overridden by those of the role and of the domain

Takes a dict: root, into.
*/}}
{{- define "integration-hub.workloads" -}}
{{- $root := .root -}}
{{- $into := .into -}}
{{- $values := $root.Values -}}
{{- $domains := include "integration-hub.domains" $root | fromJsonArray -}}
{{- $relay := not (empty $values.outbox.existingSecret) -}}
{{- $_ := set $into "items" list -}}
{{- if not $values.roles.split -}}
{{- $all := dict "suffix" "" "component" "hub" "role" "" "args" (list "serve") "domains" $domains "api" true "resolver" false "relay" $relay "overrides" list -}}
{{- include "integration-hub.workload" (dict "root" $root "into" $into "workload" $all) -}}
{{- else -}}
{{- range $role := list "event-processor" "outbox-processor" "dlt-router" "dlt-processor" "outbox-relay" "api" "subscription-resolver" -}}
{{- $own := get $values.roles ($role | camelcase | untitle) -}}
{{- if and $own.enabled (or $relay (ne $role "outbox-relay")) -}}
{{- $common := dict "component" $role "role" $role "api" (eq $role "api") "resolver" (eq $role "subscription-resolver") "relay" (eq $role "outbox-relay") -}}
{{- /* Not for the dlt-processor: its processes share the requests for redrives of all domains. */ -}}
{{- $rest := ternary $domains list (eq $role "outbox-processor") -}}
{{- $args := list "serve" "--role" $role -}}
{{- $separate := $own.domains | default dict -}}
{{- range $domain := ternary $rest (keys $separate | sortAlpha) ($own.perDomain | default false) -}}
{{- if not (has $domain $domains) -}}
{{- fail (printf "roles.%s.domains.%s: unknown domain; configured domains: %s" ($role | camelcase | untitle) $domain (join ", " $domains)) -}}
{{- end -}}
{{- $rest = without $rest $domain -}}
{{- $one := dict "suffix" (printf "%s-%s" $role $domain) "args" (concat $args (list "--domain" $domain)) "domains" (list $domain) "overrides" (list $own (get $separate $domain | default dict)) -}}
{{- include "integration-hub.workload" (dict "root" $root "into" $into "workload" (merge $one $common)) -}}
{{- end -}}
{{- $divided := or $own.perDomain $separate -}}
{{- if or $rest (not $divided) -}}
{{- $other := dict "suffix" $role "args" (ternary (concat $args (list "--domain" (join "," $rest))) $args (not (empty $divided))) "domains" $rest "overrides" (list $own) -}}
{{- include "integration-hub.workload" (dict "root" $root "into" $into "workload" (merge $other $common)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Completes one workload, and appends it. Takes a dict: root, into, workload. */}}
{{- define "integration-hub.workload" -}}
{{- $one := .workload -}}
{{- $values := dict -}}
{{- $keys := list "replicas" "resources" "autoscaling" "keda" "podDisruptionBudget" "topologySpreadConstraints" "podLabels" "podAnnotations" "nodeSelector" "tolerations" "affinity" "priorityClassName" "preStopSleepSeconds" -}}
{{- range $key := $keys -}}
{{- if hasKey $.root.Values $key -}}
{{- $_ := set $values $key (get $.root.Values $key) -}}
{{- end -}}
{{- end -}}
{{- $values = deepCopy $values -}}
{{- range $one.overrides -}}
{{- $values = mustMergeOverwrite $values (omit (deepCopy .) "enabled" "perDomain" "domains") -}}
{{- end -}}
{{- $selector := dict "app.kubernetes.io/name" (include "integration-hub.name" .root) "app.kubernetes.io/instance" .root.Release.Name "app.kubernetes.io/component" $one.component -}}
{{- if $one.suffix -}}
{{- $_ := set $selector "integration-hub/workload" $one.suffix -}}
{{- end -}}
{{- $_ := set $one "name" (include "integration-hub.suffixed" (dict "root" .root "suffix" $one.suffix)) -}}
{{- $_ := set $one "selector" $selector -}}
{{- $_ := set $one "values" $values -}}
{{- $_ := set $one "triggers" (include "integration-hub.keda.triggers" (dict "root" .root "workload" $one) | fromYamlArray) -}}
{{- $keda := and $values.keda.enabled $one.triggers -}}
{{- if and $values.keda.enabled $values.autoscaling.enabled -}}
{{- fail (printf "keda.enabled: is set together with autoscaling.enabled for %s, and only one may set its replicas; disable one of them" $one.name) -}}
{{- end -}}
{{- range $scaler := list "keda" "autoscaling" -}}
{{- $limits := get $values $scaler -}}
{{- if and $limits.enabled (gt (int $limits.minReplicas) (int $limits.maxReplicas)) -}}
{{- fail (printf "%s.minReplicas: %d is more than maxReplicas (%d) for %s; lower it" $scaler (int $limits.minReplicas) (int $limits.maxReplicas) $one.name) -}}
{{- end -}}
{{- end -}}
{{- $most := $values.replicas | default 1 | int -}}
{{- if $keda -}}{{- $most = int $values.keda.maxReplicas -}}{{- end -}}
{{- if $values.autoscaling.enabled -}}{{- $most = int $values.autoscaling.maxReplicas -}}{{- end -}}
{{- $_ := set $one "mostReplicas" $most -}}
{{- $_ := set $one "keda" (not (empty $keda)) -}}
{{- $_ := set $one "scaled" (or $values.autoscaling.enabled (not (empty $keda))) -}}
{{- $_ := set .into "items" (append .into.items $one) -}}
{{- end -}}

{{/* Names of the domains, as a JSON list: the defaults of the hub, and those of settings.domains. */}}
{{- define "integration-hub.domains" -}}
{{- $names := list "user-lifecycle" "access-session" "policy-client" "organization" -}}
{{- range .Values.settings.domains -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{/* Full name and a suffix, at most 63 characters, so that it may be the value of a label. Takes a dict: root, suffix. */}}
{{- define "integration-hub.suffixed" -}}
{{- $full := include "integration-hub.fullname" .root -}}
{{- if .suffix -}}
{{- $full = printf "%s-%s" $full .suffix -}}
{{- end -}}
{{- if gt (len $full) 63 -}}
{{- printf "%s-%s" ($full | trunc 54 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{/* Labels of every pod that runs `hub serve`, in whichever Deployment. */}}
{{- define "integration-hub.processLabels" -}}
app.kubernetes.io/name: {{ include "integration-hub.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
integration-hub/process: serve
{{- end -}}

{{/* Seconds from SIGTERM to SIGKILL: the sleep of preStop, settings.delivery.grace, and 25 s in which the hub ends in any case. */}}
{{- define "integration-hub.terminationGracePeriod" -}}
{{- $root := .root -}}
{{- if $root.Values.terminationGracePeriodSeconds -}}
{{- int $root.Values.terminationGracePeriodSeconds -}}
{{- else -}}
{{- $grace := include "integration-hub.seconds" (($root.Values.settings.delivery | default dict).grace | default "20s") | int -}}
{{- add $grace 25 (int .workload.values.preStopSleepSeconds) -}}
{{- end -}}
{{- end -}}

{{/*
Triggers of KEDA for a workload, as a YAML list: the backlogs that its roles read. Takes a dict: root, workload.
Own lanes (lane-own-…) are left out: they belong to endpoints that do not keep up, which more processes do not make faster.
*/}}
{{- define "integration-hub.keda.triggers" -}}
{{- $keda := .workload.values.keda -}}
{{- $streams := list -}}
{{- $prefix := (.root.Values.settings.nats | default dict).prefix | default "hub" | upper | replace "-" "_" -}}
{{- if has .workload.role (list "" "event-processor") -}}
{{- $streams = append $streams (list (printf "%s_EVENTS" $prefix) "event-processor") -}}
{{- end -}}
{{- if has .workload.role (list "" "outbox-processor") -}}
{{- range .workload.domains -}}
{{- $streams = append $streams (list (printf "%s_OUTBOX_%s" $prefix (. | upper | replace "-" "_")) "lane-shared") -}}
{{- end -}}
{{- end -}}
{{- $triggers := list -}}
{{- range $streams -}}
{{- $metadata := dict "natsServerMonitoringEndpoint" $keda.monitoring.endpoint "account" $keda.monitoring.account "stream" (first .) "consumer" (last .) "lagThreshold" ($keda.lagThreshold | int | toString) "activationLagThreshold" ($keda.activationLagThreshold | int | toString) "useHttps" ($keda.monitoring.useHttps | toString) -}}
{{- $trigger := dict "type" "nats-jetstream" "metadata" $metadata -}}
{{- if $keda.monitoring.authenticationRef -}}
{{- $_ := set $trigger "authenticationRef" $keda.monitoring.authenticationRef -}}
{{- end -}}
{{- $triggers = append $triggers $trigger -}}
{{- end -}}
{{- concat $triggers ($keda.triggers | default list) | toYaml -}}
{{- end -}}

{{/* Whole MiB of a size of the hub ("32MiB", "64MB") or of Kubernetes ("512Mi", "1Gi"); 0 if it has another form. */}}
{{- define "integration-hub.mebibytes" -}}
{{- $size := toString . -}}
{{- $number := regexFind "^[0-9]+" $size | default "0" | int -}}
{{- $unit := regexFind "[A-Za-z]+$" $size | trimSuffix "B" -}}
{{- $bytes := get (dict "" 1 "k" 1000 "K" 1000 "Ki" 1024 "KiB" 1024 "M" 1000000 "Mi" 1048576 "G" 1000000000 "Gi" 1073741824) $unit | default 0 | int64 -}}
{{- div (mul $number $bytes) 1048576 -}}
{{- end -}}

{{/* MiB that a process of a workload may need: the messages that it holds, and 128 for the rest. Takes a dict: root, workload. */}}
{{- define "integration-hub.memoryNeed" -}}
{{- $settings := .root.Values.settings -}}
{{- $need := 128 -}}
{{- if has .workload.role (list "" "event-processor") -}}
{{- /* An event takes three times its size while its envelopes are planned. */ -}}
{{- $need = include "integration-hub.mebibytes" (($settings.events | default dict).held_bytes | default "32MiB") | int | mul 3 | add $need -}}
{{- end -}}
{{- if has .workload.role (list "" "outbox-processor") -}}
{{- $need = include "integration-hub.mebibytes" (($settings.delivery | default dict).held_bytes | default "64MiB") | int | mul (len .workload.domains) | add $need -}}
{{- end -}}
{{- $need -}}
{{- end -}}
