{{/* Everything that contradicts itself, in one list of sentences, before anything is sent to the cluster. */}}
{{- define "losswire.validate" -}}
{{- $v := .Values -}}
{{- $problems := list -}}

{{- $name := include "losswire.fullname" $ -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- $problems = append $problems (printf "the name of all objects is %q, of the release, nameOverride and fullnameOverride; Kubernetes takes small letters, digits and hyphens, with a letter first" $name) -}}
{{- end -}}
{{- range $label := keys $v.commonLabels | sortAlpha -}}
{{- if regexMatch "^(app\\.kubernetes\\.io/(name|instance|component|version|managed-by)|helm\\.sh/chart)$" $label -}}
{{- $problems = append $problems (printf "commonLabels has %q, which the chart sets itself; leave it out" $label) -}}
{{- end -}}
{{- end -}}

{{- $needed := add1 (include "losswire.drainSeconds" . | int) -}}
{{- with $v.terminationGracePeriodSeconds -}}
{{- if lt (int .) (int $needed) -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds is %d; drain.preStopSeconds + waitSeconds + graceSeconds, and 6 s for the last traces where settings.otlp_endpoint is set, take %s s, so at least %d is needed, or null to have it computed" (int .) (include "losswire.drainSeconds" $) (int $needed)) -}}
{{- end -}}
{{- end -}}

{{- if and $v.autoscaling.hpa.enabled $v.autoscaling.keda.enabled -}}
{{- $problems = append $problems "autoscaling.hpa.enabled and autoscaling.keda.enabled are both true; KEDA makes a HorizontalPodAutoscaler of its own, so enable one" -}}
{{- end -}}
{{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) -}}
{{- $problems = append $problems (printf "autoscaling.minReplicas is %d; autoscaling.maxReplicas %d must not be less" (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}

{{- if and $v.autoscaling.keda.enabled (gt (int $v.autoscaling.keda.fallbackReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- $problems = append $problems (printf "autoscaling.keda.fallbackReplicas is %d; autoscaling.maxReplicas %d must not be less" (int $v.autoscaling.keda.fallbackReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- $scaled := or $v.autoscaling.hpa.enabled $v.autoscaling.keda.enabled -}}
{{- if and $scaled $v.autoscaling.cpuPercent (not (or ($v.resources.requests).cpu ($v.resources.limits).cpu)) -}}
{{- $problems = append $problems (printf "autoscaling.cpuPercent is %d, a share of resources.requests.cpu, which is not given; give it, or set autoscaling.cpuPercent to 0" (int $v.autoscaling.cpuPercent)) -}}
{{- end -}}

{{- $budget := $v.podDisruptionBudget -}}
{{- if and $budget.enabled (eq (kindIs "invalid" $budget.maxUnavailable) (kindIs "invalid" $budget.minAvailable)) -}}
{{- $problems = append $problems "podDisruptionBudget.maxUnavailable and podDisruptionBudget.minAvailable: exactly one of them is needed; set the other one to null" -}}
{{- end -}}
{{- if and $budget.enabled (or (regexMatch "^0+%?$" (toString $budget.maxUnavailable)) (eq (toString $budget.minAvailable) "100%")) -}}
{{- $problems = append $problems "podDisruptionBudget lets no pod go (maxUnavailable 0 or minAvailable 100%), so that no node could be drained; allow one, or set podDisruptionBudget.enabled to false" -}}
{{- end -}}
{{- if and (regexMatch "^0+%?$" (toString $v.updateStrategy.maxSurge)) (regexMatch "^0+%?$" (toString $v.updateStrategy.maxUnavailable)) -}}
{{- $problems = append $problems "updateStrategy.maxSurge and updateStrategy.maxUnavailable are both 0; an upgrade could then neither start nor stop a pod" -}}
{{- end -}}

{{- $tls := $v.tls -}}
{{- if and $tls.enabled (not $tls.existingSecret) (not $tls.certManager.enabled) -}}
{{- $problems = append $problems "tls.enabled is true without a certificate; give tls.existingSecret, or tls.certManager.enabled and its issuerRef" -}}
{{- end -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- $problems = append $problems (printf "tls.existingSecret is %q and tls.certManager.enabled is true; the certificate comes from one of them" $tls.existingSecret) -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) -}}
{{- $problems = append $problems "tls.certManager.issuerRef has no name; give the name and kind of an issuer" -}}
{{- end -}}
{{- if and (not $tls.enabled) (or $tls.existingSecret $tls.clientCASecret $tls.certManager.enabled) -}}
{{- $problems = append $problems "tls.enabled is false although a certificate or client CA is given; set it to true, or leave those out" -}}
{{- end -}}
{{- if and $v.identity.existingSecret $v.identity.existingConfigMap -}}
{{- $problems = append $problems "identity.existingSecret and identity.existingConfigMap are both given; the identity file comes from one of them" -}}
{{- end -}}
{{- if and $v.identity.clientTokenSecret.name (not (include "losswire.hasIdentity" .)) (not $tls.enabled) -}}
{{- $problems = append $problems (printf "identity.clientTokenSecret is %q although nobody asks for a token, which would travel readable; give identity.existingSecret or identity.existingConfigMap, set tls.enabled to true, or leave it out" $v.identity.clientTokenSecret.name) -}}
{{- end -}}

{{- if and $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled -}}
{{- $problems = append $problems "metrics.serviceMonitor.enabled and metrics.podMonitor.enabled are both true; every series would be scraped twice" -}}
{{- end -}}
{{- if and $v.grpcRoute.enabled (not $v.grpcRoute.parentRefs) -}}
{{- $problems = append $problems "grpcRoute.parentRefs is empty; name the gateway that the route belongs to" -}}
{{- end -}}

{{- if and $v.grpcRoute.enabled $tls.enabled (not $v.grpcRoute.backendTLSPolicy) -}}
{{- $problems = append $problems "grpcRoute.enabled and tls.enabled are both true, and a gateway speaks plain text to a backend unless a BackendTLSPolicy tells it not to; make one for the Service, in extraObjects for instance, and set grpcRoute.backendTLSPolicy to true" -}}
{{- end -}}
{{- if and (ne $v.service.type "ClusterIP") (not $tls.enabled) (not $v.service.allowPlaintext) -}}
{{- $problems = append $problems (printf "service.type is %s, which is reached from outside the cluster, and tls.enabled is false; enable TLS, or set service.allowPlaintext to true where something in front encrypts" $v.service.type) -}}
{{- end -}}
{{- if and $v.service.loadBalancerSourceRanges (ne $v.service.type "LoadBalancer") -}}
{{- $problems = append $problems (printf "service.loadBalancerSourceRanges is given, which only a Service of type LoadBalancer heeds; service.type is %s" $v.service.type) -}}
{{- end -}}

{{- $processes := 1 -}}
{{- if hasKey $v.settings "processes" -}}{{- $processes = int $v.settings.processes -}}{{- end -}}
{{- if eq $processes 0 -}}
{{- $problems = append $problems "settings.processes is 0, which counts the cores of the node and not those of the pod; give their number" -}}
{{- end -}}
{{- if and (gt $processes 1) (not $v.settings.threads) -}}
{{- $problems = append $problems (printf "settings.processes is %d without settings.threads; give the threads of each process, such as the CPU limit divided by the processes" $processes) -}}
{{- end -}}
{{- $evaluation := default 268435456 $v.settings.max_evaluation_bytes | int64 -}}
{{- $allowed := default 536870912 $v.settings.max_inflight_bytes | int64 -}}
{{- if lt $allowed (add $evaluation 4259840) -}}
{{- $problems = append $problems (printf "settings.max_inflight_bytes is %d; settings.max_evaluation_bytes (%d) and one more message take %d" $allowed $evaluation (add $evaluation 4259840)) -}}
{{- end -}}
{{- $other := get (dict "cpu" "gpu" "cuda" "cpu") $v.device -}}
{{- if eq (default "auto" $v.settings.backend) $other -}}
{{- $problems = append $problems (printf "settings.backend is %q, which does not work on device %q; leave it out, or change device" $other $v.device) -}}
{{- end -}}
{{- with ($v.resources.limits).memory -}}
{{- $inflight := div (default 536870912 $v.settings.max_inflight_bytes | int64) 1048576 -}}
{{- $stored := div (ternary $v.settings.max_stored_bytes 67108864 (hasKey $v.settings "max_stored_bytes") | int64) 1048576 -}}
{{- $base := include "losswire.baseMebibytes" $ | int64 -}}
{{- $need := mul (max $processes 1) (add $inflight $stored $base) -}}
{{- $has := include "losswire.mebibytes" . | int64 -}}
{{- if lt $has $need -}}
{{- $problems = append $problems (printf "resources.limits.memory is %s; settings.max_inflight_bytes (%d MiB), max_stored_bytes (%d MiB) and the %d MiB of an idle server, for each of %d processes, take %d MiB" (toString .) $inflight $stored $base $processes $need) -}}
{{- end -}}
{{- end -}}

{{- if and $v.batch.enabled (not $v.batch.sources) -}}
{{- $problems = append $problems "batch.sources is empty; name what `losswire score` shall read, such as /data/*.parquet" -}}
{{- end -}}
{{- if and $v.batch.enabled $tls.clientCASecret (not $tls.clientSecret) -}}
{{- $problems = append $problems "tls.clientSecret is empty although tls.clientCASecret demands a certificate of the pods of batch; name a Secret with ca.crt, tls.crt and tls.key" -}}
{{- end -}}

{{- $problems = concat $problems (include "losswire.missingSecrets" . | fromJsonArray) -}}
{{- with $problems -}}
{{- fail (printf "\n\nlosswire: these values contradict one another or the cluster:\n- %s\n" (join "\n- " .)) -}}
{{- end -}}
{{- end }}

{{/* MiB of an idle server, with room to spare: docs/deploy.md. */}}
{{- define "losswire.baseMebibytes" -}}
{{ ternary 2560 400 (eq .Values.device "cuda") }}
{{- end }}

{{/* A sentence for each Secret or ConfigMap, or key of one, that is named but not in the namespace, where there is a cluster to ask: as JSON. */}}
{{- define "losswire.missingSecrets" -}}
{{- $problems := list -}}
{{- $tls := .Values.tls -}}
{{- $pair := list "tls.crt" "tls.key" -}}
{{- $named := list -}}
{{- with $tls.existingSecret -}}
{{- $named = append $named (list "tls.existingSecret" . (ternary $pair (append $pair "ca.crt") (ne $tls.clientSecret ""))) -}}
{{- end -}}
{{- with $tls.clientCASecret -}}
{{- $named = append $named (list "tls.clientCASecret" . (list $tls.clientCAKey)) -}}
{{- end -}}
{{- with $tls.clientSecret -}}
{{- $named = append $named (list "tls.clientSecret" . (ternary (prepend $pair "ca.crt") (list "ca.crt") (ne $tls.clientCASecret ""))) -}}
{{- end -}}
{{- with .Values.batch.tokenSecret.name -}}
{{- $named = append $named (list "batch.tokenSecret.name" . (list (default "token" $.Values.batch.tokenSecret.key))) -}}
{{- end -}}
{{- with .Values.identity.existingSecret -}}
{{- $named = append $named (list "identity.existingSecret" . (list "identity.toml")) -}}
{{- end -}}
{{- with .Values.identity.existingConfigMap -}}
{{- $named = append $named (list "identity.existingConfigMap" . (list "identity.toml")) -}}
{{- end -}}
{{- with .Values.identity.clientTokenSecret.name -}}
{{- $named = append $named (list "identity.clientTokenSecret.name" . (list (default "token" $.Values.identity.clientTokenSecret.key))) -}}
{{- end -}}
{{- range .Values.secretFiles -}}
{{- $named = append $named (list (printf "secretFiles[%s].secretName" .name) .secretName list) -}}
{{- end -}}
{{- range .Values.imagePullSecrets -}}
{{- $named = append $named (list "imagePullSecrets" .name list) -}}
{{- end -}}
{{- $ending := "or set checkSecrets to false where another tool makes it later" -}}
{{- if and .Values.checkSecrets $named (lookup "v1" "Secret" .Release.Namespace "") -}}
{{- range $named -}}
{{- $setting := index . 0 -}}
{{- $name := index . 1 -}}
{{- $kind := ternary "ConfigMap" "Secret" (hasSuffix "ConfigMap" $setting) -}}
{{- $object := lookup "v1" $kind $.Release.Namespace $name -}}
{{- if not $object -}}
{{- $problems = append $problems (printf "%s is %q, which is no %s in namespace %s; make it first, %s" $setting $name $kind $.Release.Namespace $ending) -}}
{{- else -}}
{{- range index . 2 -}}
{{- if not (hasKey (default dict $object.data) .) -}}
{{- $problems = append $problems (printf "%s is %q, a %s in namespace %s without the key %s; add the key, %s" $setting $name $kind $.Release.Namespace . $ending) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ toJson $problems }}
{{- end }}
