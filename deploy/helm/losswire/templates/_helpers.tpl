{{- define "losswire.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "losswire.fullname" -}}
{{- $name := include "losswire.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* Job under which Prometheus keeps this release; LosswireReplicaDown knows it by "losswire" in it. */}}
{{- define "losswire.job" -}}
{{- $name := include "losswire.fullname" . -}}
{{ ternary $name (printf "losswire-%s" $name) (contains "losswire" $name) }}
{{- end }}

{{/* What selects the server's pods; never changes in the life of a release. */}}
{{- define "losswire.selector" -}}
app.kubernetes.io/name: {{ include "losswire.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{/* Labels of every object. The argument is a list: the context, and the component where it is not the server. */}}
{{- define "losswire.labels" -}}
{{- $root := index . 0 -}}
{{ include "losswire.lastingLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{/* Those of them that no upgrade changes. */}}
{{- define "losswire.lastingLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "losswire.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "losswire.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "losswire.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{- define "losswire.image" -}}
{{- $image := .Values.image -}}
{{- $registry := default $image.registry .Values.global.imageRegistry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ $image.repository }}
{{- if $image.digest -}}
@{{ $image.digest }}
{{- else -}}
:{{ default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" "" (eq .Values.device "cuda"))) $image.tag }}
{{- end -}}
{{- end }}

{{/* The ports, by name: one place for container, Services, policies and monitors. */}}
{{- define "losswire.ports" -}}
grpc: 50051
health: 50052
metrics: 9464
{{- end }}

{{/* Seconds of an orderly end: the drain and, where there are traces, up to 5 for a collector that does not answer. */}}
{{- define "losswire.drainSeconds" -}}
{{- $drain := .Values.drain -}}
{{ add $drain.preStopSeconds $drain.waitSeconds $drain.graceSeconds (ternary 6 0 (not (empty .Values.settings.otlp_endpoint))) }}
{{- end }}

{{- define "losswire.terminationGracePeriodSeconds" -}}
{{- default (add (include "losswire.drainSeconds" . | int) 5) .Values.terminationGracePeriodSeconds | int -}}
{{- end }}

{{/* Secret with the server's certificate. */}}
{{- define "losswire.tlsSecret" -}}
{{- default (printf "%s-tls" (include "losswire.fullname" .)) .Values.tls.existingSecret -}}
{{- end }}

{{/* gRPC target of this release for clients in the cluster: all pods, balanced by the client. */}}
{{- define "losswire.target" -}}
dns:///{{ include "losswire.fullname" . }}-headless.{{ .Release.Namespace }}:{{ .Values.service.port }}
{{- end }}

{{/* Mean seconds that an evaluation waits: for its share of memory and the engine, and, where small ones wait, for the event loop.
     Four minutes hold several scrapes where Prometheus asks once a minute, its default; over one there would be no rate.
     The argument is a list: matchers of the pods, and the labels to keep. */}}
{{- define "losswire.queueQuery" -}}
{{- $matchers := index . 0 -}}{{- $by := index . 1 -}}
sum(rate(losswire_stage_duration_seconds_sum{stage=~"admit|queue",{{ $matchers }}}[4m])){{ $by }} / clamp_min(sum(rate(losswire_stage_duration_seconds_count{stage="queue",{{ $matchers }}}[4m])){{ $by }}, 0.001) + sum(rate(losswire_loop_delay_seconds_sum{ {{- $matchers -}} }[4m])){{ $by }} / clamp_min(sum(rate(losswire_loop_delay_seconds_count{ {{- $matchers -}} }[4m])){{ $by }}, 0.001)
{{- end }}

{{/* A resource quantity of memory in MiB, rounded down. A number of a file comes with an exponent: 1.610612736e+09. */}}
{{- define "losswire.mebibytes" -}}
{{- $quantity := toString . -}}
{{- $number := regexFind "^[0-9.]+([eE][+-]?[0-9]+)?" $quantity | float64 -}}
{{- $factors := dict "" 1 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 -}}
{{- $factors = merge $factors (dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976) -}}
{{- divf (mulf $number (get $factors (regexFind "[A-Za-z]*$" $quantity))) 1048576 | floor | int64 -}}
{{- end }}
