{{/* Shared by the hub's pods, the provisioning Job and the test. Where a dict is taken: root, workload (only for the hub's pods). */}}

{{/* The login of a workload at NATS, as JSON: user, inboxPrefix, method, existingSecret, key. Takes a dict: root, workload. */}}
{{- define "integration-hub.login" -}}
{{- $auth := .root.Values.nats.auth -}}
{{- $own := dict -}}
{{- with .workload -}}
{{- $own = .values.nats | default dict -}}
{{- end -}}
{{- $ownAuth := $own.auth | default dict -}}
{{- $names := dict "password" "password" "token" "token" "credentials" "nats.creds" "nkey" "nkey.seed" "none" "" -}}
{{- dict "user" ($own.user | default "") "inboxPrefix" ($own.inboxPrefix | default "") "method" $auth.method "existingSecret" ($ownAuth.existingSecret | default $auth.existingSecret) "key" ($ownAuth.key | default $auth.key | default (get $names $auth.method)) | toJson -}}
{{- end -}}

{{/* Environment: the path of the settings, and references to the secrets. Takes a dict: root, workload. */}}
{{- define "integration-hub.env" -}}
{{- $values := .root.Values -}}
{{- $login := include "integration-hub.login" . | fromJson -}}
{{- $tls := $values.nats.tls -}}
- name: HUB_CONFIG
  value: /etc/integration-hub/hub.toml
{{- with $login.user }}
- name: HUB__NATS__USER
  value: {{ . | quote }}
{{- end }}
{{- with $login.inboxPrefix }}
- name: HUB__NATS__INBOX_PREFIX
  value: {{ . | quote }}
{{- end }}
{{- if eq $login.method "password" }}
- name: HUB__NATS__PASSWORD
  {{- include "integration-hub.fromSecret" (dict "existingSecret" $login.existingSecret "key" $login.key) | nindent 2 }}
{{- else if eq $login.method "token" }}
- name: HUB__NATS__TOKEN
  {{- include "integration-hub.fromSecret" (dict "existingSecret" $login.existingSecret "key" $login.key) | nindent 2 }}
{{- else if eq $login.method "credentials" }}
- name: HUB__NATS__CREDENTIALS_FILE
  value: /etc/integration-hub/nats-auth/{{ $login.key }}
{{- else if eq $login.method "nkey" }}
- name: HUB__NATS__NKEY_SEED_FILE
  value: /etc/integration-hub/nats-auth/{{ $login.key }}
{{- end }}
{{- if $tls.existingSecret }}
{{- with $tls.caKey }}
- name: HUB__NATS__TLS_CA_FILE
  value: /etc/integration-hub/nats-tls/{{ . }}
{{- end }}
{{- with $tls.certKey }}
- name: HUB__NATS__TLS_CERT_FILE
  value: /etc/integration-hub/nats-tls/{{ . }}
{{- end }}
{{- with $tls.keyKey }}
- name: HUB__NATS__TLS_KEY_FILE
  value: /etc/integration-hub/nats-tls/{{ . }}
{{- end }}
{{- end }}
{{- if $values.masterKey.existingSecret }}
- name: HUB__SECRETS__MASTER_KEY
  {{- include "integration-hub.fromSecret" $values.masterKey | nindent 2 }}
{{- end }}
{{- if $values.masterKey.previousKeys.existingSecret }}
- name: HUB__SECRETS__PREVIOUS_KEYS
  {{- include "integration-hub.fromSecret" $values.masterKey.previousKeys | nindent 2 }}
{{- end }}
{{- /* Only the relay and the API use the database; a process with all roles, too. */}}
{{- $database := true }}
{{- with .workload }}
{{- $database = or .relay .api }}
{{- end }}
{{- if and $database $values.outbox.existingSecret }}
- name: HUB__OUTBOX__DATABASE_URL
  {{- include "integration-hub.fromSecret" $values.outbox | nindent 2 }}
{{- end }}
{{- if $values.externalBrokers.existingSecret }}
- name: HUB__EXTERNAL_BROKERS
  {{- include "integration-hub.fromSecret" $values.externalBrokers | nindent 2 }}
{{- end }}
{{- if $values.resolver.token.existingSecret }}
- name: HUB__SUBSCRIPTIONS__TOKEN
  {{- include "integration-hub.fromSecret" $values.resolver.token | nindent 2 }}
{{- end }}
{{- with .workload }}
{{- if .resolver }}
- name: HUB__SUBSCRIPTIONS__LISTEN
  value: 0.0.0.0:{{ int $values.resolver.port }}
{{- if $values.resolver.listenToken.existingSecret }}
- name: HUB__SUBSCRIPTIONS__LISTEN_TOKEN
  {{- include "integration-hub.fromSecret" $values.resolver.listenToken | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- with .workload }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Takes a dict: existingSecret, key. */}}
{{- define "integration-hub.fromSecret" -}}
valueFrom:
  secretKeyRef:
    name: {{ .existingSecret | quote }}
    key: {{ .key | quote }}
{{- end -}}

{{/* What the containers of the hub's image have in common: image, environment, files. Takes a dict: root, workload. */}}
{{- define "integration-hub.container" -}}
image: {{ include "integration-hub.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
# If the process writes nothing here, its last log lines become the message of the container's state.
terminationMessagePolicy: FallbackToLogsOnError
env:
  {{- $env := list }}
  {{- $names := list }}
  {{- range include "integration-hub.env" . | fromYamlArray | reverse }}
  {{- /* The last one of a name is in effect; Kubernetes does not accept a second one. */}}
  {{- if not (has .name $names) }}
  {{- $names = append $names .name }}
  {{- $env = prepend $env . }}
  {{- end }}
  {{- end }}
  {{- toYaml $env | nindent 2 }}
{{- with .root.Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.containerSecurityContext | nindent 2 }}
volumeMounts:
  {{- include "integration-hub.volumeMounts" .root | nindent 2 }}
{{- end -}}

{{- define "integration-hub.volumeMounts" -}}
- name: settings
  mountPath: /etc/integration-hub/hub.toml
  subPath: hub.toml
  readOnly: true
{{- if has .Values.nats.auth.method (list "credentials" "nkey") }}
- name: nats-auth
  mountPath: /etc/integration-hub/nats-auth
  readOnly: true
{{- end }}
{{- if .Values.nats.tls.existingSecret }}
- name: nats-tls
  mountPath: /etc/integration-hub/nats-tls
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes a dict: root, workload, configMap. */}}
{{- define "integration-hub.volumes" -}}
- name: settings
  configMap:
    name: {{ .configMap }}
{{- if has .root.Values.nats.auth.method (list "credentials" "nkey") }}
- name: nats-auth
  secret:
    secretName: {{ (include "integration-hub.login" . | fromJson).existingSecret }}
    defaultMode: 0440
{{- end }}
{{- with .root.Values.nats.tls.existingSecret }}
- name: nats-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Placement and security context of a pod. Takes a dict: root, workload. */}}
{{- define "integration-hub.placement" -}}
{{- $values := .root.Values -}}
{{- $own := $values -}}
{{- with .workload -}}
{{- $own = .values -}}
{{- end -}}
automountServiceAccountToken: false
# No variables for the Services of the namespace, because the hub reads settings from the environment.
enableServiceLinks: false
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with concat $values.imagePullSecrets (($values.global | default dict).imagePullSecrets | default list) | uniq }}
imagePullSecrets:
  {{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}
  {{- end }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with $values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
