{{/* What every pod of the chart has: no token, restricted, the image's secrets. */}}
{{- define "losswire.podSpec" -}}
serviceAccountName: {{ include "losswire.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.pod.securityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Resources of the server, with the GPU. */}}
{{- define "losswire.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if eq .Values.device "cuda" -}}
{{- $gpu := dict .Values.gpu.resourceName .Values.gpu.count -}}
{{- $resources = merge (dict "limits" (merge $gpu (default dict $resources.limits))) $resources -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}

{{/* The file of settings, in TOML. JSON's scalars are TOML's, and large numbers keep all their digits. */}}
{{- define "losswire.settings" -}}
drain_wait_s = {{ .Values.drain.waitSeconds }}
drain_grace_s = {{ .Values.drain.graceSeconds }}
log_format = "json"
{{- if .Values.tls.enabled }}
tls_certificate = "/etc/losswire/tls/tls.crt"
tls_key = "/etc/losswire/tls/tls.key"
{{- else }}
insecure = true
{{- end }}
{{- if .Values.tls.clientCASecret }}
tls_client_ca = "/etc/losswire/client-ca/{{ .Values.tls.clientCAKey }}"
{{- end }}
{{- if include "losswire.hasIdentity" . }}
identity = "/etc/losswire/identity/identity.toml"
{{- end }}
{{- range $name, $value := .Values.settings }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end }}

{{/* Whether callers are asked who they are. */}}
{{- define "losswire.hasIdentity" -}}
{{- if or .Values.identity.existingSecret .Values.identity.existingConfigMap -}}true{{- end -}}
{{- end }}

{{/* The Secret of a client's token, as JSON: the first of these that is named. The argument is a list: the context, and Secrets. */}}
{{- define "losswire.tokenSecret" -}}
{{- $secret := dict -}}
{{- range rest . -}}{{- if and .name (not $secret.name) -}}{{- $secret = . -}}{{- end -}}{{- end -}}
{{ toJson $secret }}
{{- end }}

{{/* Where a client in the chart finds its token: a file, which follows its Secret in a pod that runs for hours. */}}
{{- define "losswire.tokenEnvironment" -}}
{{- $root := index . 0 -}}
{{- if include "losswire.tokenSecret" . | fromJson -}}
env:
  - name: LOSSWIRE_TOKEN_FILE
    value: /etc/losswire/token/token
  {{- if and (include "losswire.hasIdentity" $root) (not $root.Values.tls.enabled) }}
  # Without TLS the server takes tokens only where its identity file says so.
  - name: LOSSWIRE_TOKEN_WITHOUT_TLS
    value: "true"
  {{- end }}
{{- end }}
{{- end }}

{{- define "losswire.tokenMount" -}}
{{- if include "losswire.tokenSecret" . | fromJson -}}
- name: token
  mountPath: /etc/losswire/token
  readOnly: true
{{- end }}
{{- end }}

{{- define "losswire.tokenVolume" -}}
{{- with include "losswire.tokenSecret" . | fromJson -}}
- name: token
  secret:
    secretName: {{ .name }}
    defaultMode: 0440
    items:
      - key: {{ default "token" .key }}
        path: token
{{- end }}
{{- end }}

{{/* Whether there is a `helm test`: not where its pod could not show who it is. */}}
{{- define "losswire.hasTest" -}}
{{- $certified := and .Values.tls.clientCASecret .Values.tls.clientSecret -}}
{{- $known := or (not (include "losswire.hasIdentity" .)) .Values.identity.clientTokenSecret.name $certified -}}
{{- if and $known (or $certified (not .Values.tls.clientCASecret)) -}}true{{- end -}}
{{- end }}

{{/* What a client in the chart gets besides the image: the CA of the server, and the certificate where it is demanded. */}}
{{- define "losswire.client" -}}
image: {{ include "losswire.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.pod.containerSecurityContext | nindent 2 }}
{{- end }}

{{- define "losswire.clientMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .Values.tls.enabled }}
- name: tls
  mountPath: /etc/losswire/tls
  readOnly: true
{{- end }}
{{- end }}

{{/* Of the server's own Secret a client gets the CA alone. */}}
{{- define "losswire.clientVolumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ default (include "losswire.tlsSecret" .) .Values.tls.clientSecret }}
    defaultMode: 0440
    {{- if not .Values.tls.clientSecret }}
    items:
      - key: ca.crt
        path: ca.crt
    {{- end }}
{{- end }}
{{- end }}

{{- define "losswire.tlsArguments" -}}
{{- if .Values.tls.enabled -}}
- --ca=/etc/losswire/tls/ca.crt
{{- if .Values.tls.clientCASecret }}
- --certificate=/etc/losswire/tls/tls.crt
- --key=/etc/losswire/tls/tls.key
{{- end }}
{{- end -}}
{{- end }}
