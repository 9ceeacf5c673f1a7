"""Values of the chart that switch its features on and off, and every pair of them in as few renderings as it takes."""

from __future__ import annotations

import copy
from typing import Any

from allpairspy import AllPairs

Values = dict[str, Any]

# Each feature has two or more settings; the first is the default.
FEATURES: dict[str, list[Values]] = {
    "device": [
        {},
        {"device": "cuda", "gpu": {"runtimeClassName": "nvidia"}, "resources": {"limits": {"memory": "8Gi"}}},
    ],
    "tls": [
        {},
        {"tls": {"enabled": True, "existingSecret": "cert", "clientCASecret": "ca", "clientSecret": "client"}},
        {"tls": {"enabled": True, "certManager": {"enabled": True, "issuerRef": {"name": "ca", "kind": "Issuer"}}}},
    ],
    "identity": [
        {},
        {"identity": {"existingSecret": "who", "clientTokenSecret": {"name": "test-token"}}},
        {"identity": {"existingConfigMap": "who"}},
    ],
    "scaling": [{}, {"autoscaling": {"hpa": {"enabled": True}}}, {"autoscaling": {"keda": {"enabled": True}}}],
    "monitor": [
        {},
        {"metrics": {"serviceMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}}}},
        {"metrics": {"podMonitor": {"enabled": True}}},
    ],
    "rules": [{}, {"metrics": {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}}],
    "batch": [
        {},
        {"batch": {"enabled": True, "sources": ["/data/*.parquet"], "shards": 4, "parallelism": 2}},
        {
            "batch": {
                "enabled": True,
                "sources": ["/data/a.npz"],
                "schedule": "0 3 * * *",
                "tokenSecret": {"name": "token", "key": "value"},
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }
        },
    ],
    "route": [
        {},
        {
            "grpcRoute": {
                "enabled": True,
                "parentRefs": [{"name": "public"}],
                "hostnames": ["loss.example.com"],
                "backendTLSPolicy": True,
            }
        },
    ],
    "network": [
        {},
        {"networkPolicy": {"clients": [{"podSelector": {}}], "extraEgress": [{"ports": [{"port": 4317}]}]}},
        {"networkPolicy": {"enabled": False}},
    ],
    "budget": [{}, {"podDisruptionBudget": {"minAvailable": "50%", "maxUnavailable": None}}],
    "probes": [{}, {"probes": {"type": "exec"}, "drain": {"preStopSeconds": 0}}],
    "settings": [
        {},
        {
            "settings": {
                "max_inflight_bytes": 301989888,
                "max_evaluation_bytes": 268435456,
                "max_stored_bytes": 0,
                "processes": 2,
                "threads": 1,
                "log_level": "debug",
            }
        },
    ],
    "names": [{}, {"nameOverride": "nll", "commonLabels": {"team": "ml"}, "pod": {"labels": {"a": "b"}}}],
    "service": [
        {},
        {
            "service": {
                "type": "LoadBalancer",
                "port": 443,
                "allowPlaintext": True,
                "loadBalancerSourceRanges": ["10.0.0.0/8"],
                "trafficDistribution": "PreferClose",
            }
        },
    ],
    "account": [{}, {"serviceAccount": {"create": False}}],
    "image": [{}, {"image": {"digest": "sha256:" + "a" * 64}, "global": {"imageRegistry": "registry.example.com"}}],
    "extra": [
        {},
        {
            "extraEnv": [{"name": "A", "value": "1"}],
            "extraVolumes": [{"name": "more", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
            "extraObjects": ["apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-more'}"],
            "secretFiles": [{"name": "tokens", "secretName": "tokens"}],
            "imagePullSecrets": [{"name": "registry"}],
        },
    ],
}


def merged(parts: list[Values]) -> Values:
    """The union of nested values; the last one wins."""
    result: Values = {}
    for part in parts:
        for key, value in part.items():
            nested = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged([result[key], value]) if nested else copy.deepcopy(value)
    return result


PAIRWISE = [merged(list(row)) for row in AllPairs(list(FEATURES.values()))]
