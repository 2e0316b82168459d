{{/* Shared by the hub's pods and the provisioning Job. */}}

{{/* Environment: the path of the settings, and references to the secrets. */}}
{{- define "integration-hub.env" -}}
{{- $auth := .Values.nats.auth -}}
{{- $tls := .Values.nats.tls -}}
- name: HUB_CONFIG
  value: /etc/integration-hub/hub.toml
{{- if eq $auth.method "password" }}
- name: HUB__NATS__PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $auth.existingSecret }}
      key: {{ default "password" $auth.key }}
{{- else if eq $auth.method "token" }}
- name: HUB__NATS__TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ $auth.existingSecret }}
      key: {{ default "token" $auth.key }}
{{- else if eq $auth.method "credentials" }}
- name: HUB__NATS__CREDENTIALS_FILE
  value: /etc/integration-hub/nats-auth/{{ default "nats.creds" $auth.key }}
{{- else if eq $auth.method "nkey" }}
- name: HUB__NATS__NKEY_SEED_FILE
  value: /etc/integration-hub/nats-auth/{{ default "nkey.seed" $auth.key }}
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
{{- with .Values.masterKey.existingSecret }}
- name: HUB__SECRETS__MASTER_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.masterKey.key }}
{{- end }}
{{- with .Values.outbox.existingSecret }}
- name: HUB__OUTBOX__DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.outbox.key }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
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
{{- end -}}

{{/* Takes a dict: root, configMap. */}}
{{- define "integration-hub.volumes" -}}
- name: settings
  configMap:
    name: {{ .configMap }}
{{- if has .root.Values.nats.auth.method (list "credentials" "nkey") }}
- name: nats-auth
  secret:
    secretName: {{ .root.Values.nats.auth.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- with .root.Values.nats.tls.existingSecret }}
- name: nats-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Placement and security context of a pod. */}}
{{- define "integration-hub.placement" -}}
automountServiceAccountToken: false
# No variables for the Services of the namespace, because the hub reads settings from the environment.
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
