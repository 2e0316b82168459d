{{/*
Fails if a Secret that the values name, or a key in it, is missing in the cluster, because its pod would wait for it
without an error. Does nothing without a cluster (`helm template`, Argo CD).
*/}}
{{- define "integration-hub.verifySecrets" -}}
{{- $named := dict "items" list -}}
{{- include "integration-hub.namedSecrets" (dict "root" . "into" $named) -}}
{{- if and .Values.verifySecrets $named.items -}}
{{- /* Every namespace has this account, so it is found wherever there is a cluster. */ -}}
{{- if lookup "v1" "ServiceAccount" .Release.Namespace "default" -}}
{{- range $named.items | uniq -}}
{{- $found := lookup "v1" "Secret" $.Release.Namespace .existingSecret -}}
{{- if not $found -}}
{{- fail (printf "%s.existingSecret: no Secret %q in the namespace %s; create it, or set verifySecrets to false if something else creates it after the install" .value .existingSecret $.Release.Namespace) -}}
{{- end -}}
{{- if not (hasKey ($found.data | default dict) .key) -}}
{{- fail (printf "%s: the Secret %q has no key %q; its keys: %s" .value .existingSecret .key (keys ($found.data | default dict) | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Appends a dict (value, existingSecret, key) to `into.items` for each key of a Secret that the pods need. Takes a dict: root, into. */}}
{{- define "integration-hub.namedSecrets" -}}
{{- $into := .into -}}
{{- $values := .root.Values -}}
{{- $all := dict -}}
{{- include "integration-hub.workloads" (dict "root" .root "into" $all) -}}
{{- range concat (list dict) $all.items -}}
{{- $login := include "integration-hub.login" (dict "root" $.root "workload" .) | fromJson -}}
{{- if ne $login.method "none" -}}
{{- $_ := set $into "items" (append $into.items (dict "value" "nats.auth" "existingSecret" $login.existingSecret "key" $login.key)) -}}
{{- end -}}
{{- end -}}
{{- if $values.nats.tls.existingSecret -}}
{{- range $key := without (list $values.nats.tls.caKey $values.nats.tls.certKey $values.nats.tls.keyKey) "" -}}
{{- $_ := set $into "items" (append $into.items (dict "value" "nats.tls" "existingSecret" $values.nats.tls.existingSecret "key" $key)) -}}
{{- end -}}
{{- end -}}
{{- range $value, $named := dict "masterKey" $values.masterKey "masterKey.previousKeys" $values.masterKey.previousKeys "outbox" $values.outbox "externalBrokers" $values.externalBrokers "resolver.token" $values.resolver.token "resolver.listenToken" $values.resolver.listenToken -}}
{{- if $named.existingSecret -}}
{{- $_ := set $into "items" (append $into.items (dict "value" $value "existingSecret" $named.existingSecret "key" $named.key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
