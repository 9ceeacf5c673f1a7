"""What Helm makes of every pair of features is what Kubernetes and the operators accept, strictly."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from chart_features import PAIRWISE
from helm import CHART, Helm, Manifest, RefusedError, find_helm

# The oldest that the chart takes, the first with every field that it renders by version, and the newest there is.
VERSIONS = ("1.25", "1.31", "1.37")
CUSTOM = {
    "Certificate": "certificates.yaml",
    "GRPCRoute": "grpcroutes.yaml",
    "PodMonitor": "podmonitors.yaml",
    "PrometheusRule": "prometheusrules.yaml",
    "ScaledObject": "scaledobjects.yaml",
    "ServiceMonitor": "servicemonitors.yaml",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("index", range(len(PAIRWISE)))
def test_every_pair_of_features_renders_to_what_kubernetes_accepts(helm4: Helm, version: str, index: int) -> None:
    rendered = helm4.render(PAIRWISE[index], kube_version=f"{version}.0")

    for manifest in rendered.manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("values", PAIRWISE)
def test_both_majors_of_helm_render_the_same_objects(helm4: Helm, values: Manifest) -> None:
    assert find_helm(3).render(values).manifests == helm4.render(values).manifests


@pytest.mark.parametrize("path", sorted((CHART / "ci").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_values_pass_lint_and_render(helm: Helm, path: Path) -> None:
    linted = helm.run("lint", "--strict", CHART, "--values", path)

    assert linted.returncode == 0, linted.stdout
    for manifest in helm.render(yaml.safe_load(path.read_text())).manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_custom_resources_are_what_their_definitions_accept(helm4: Helm) -> None:
    if "LOSSWIRE_CRDS" not in os.environ:
        pytest.skip("LOSSWIRE_CRDS names no folder with the definitions of the custom resources")
    validators = {kind: _validator(Path(os.environ["LOSSWIRE_CRDS"]) / file) for kind, file in CUSTOM.items()}
    seen = set()

    for values in PAIRWISE:
        for manifest in helm4.render(values).manifests:
            if manifest["kind"] in CUSTOM:
                seen.add(manifest["kind"])
                assert _errors(validators[manifest["kind"]], manifest) == []
                misspelt = copy.deepcopy(manifest)
                misspelt["spec"]["intervall"] = "15s"
                assert _errors(validators[manifest["kind"]], misspelt)

    assert seen == set(CUSTOM)


def _validator(path: Path) -> jsonschema.Draft202012Validator:
    # The chart that one of them comes from has lines of templates in it.
    text = "\n".join(line for line in path.read_text().splitlines() if "{{" not in line)
    definition = yaml.safe_load(text)
    versions = definition["spec"]["versions"]
    served = next(each for each in versions if each["storage"])["schema"]["openAPIV3Schema"]
    return jsonschema.Draft202012Validator(_closed(served))


def _closed(schema: Any) -> Any:
    """The schema, refusing what it does not know, as Kubernetes prunes it."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    known = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if known and "x-kubernetes-preserve-unknown-fields" not in schema:
        result.setdefault("additionalProperties", False)
    return result


def _errors(validator: jsonschema.Draft202012Validator, manifest: Manifest) -> list[str]:
    stripped = {key: value for key, value in manifest.items() if key != "metadata"}
    return [error.message for error in validator.iter_errors(stripped)]


def test_an_older_kubernetes_is_refused(helm: Helm) -> None:
    with pytest.raises(RefusedError, match=r"chart requires kubeVersion: >=1\.25"):
        helm.render(kube_version="1.24.0")


def test_rendering_twice_gives_the_same_text(helm: Helm) -> None:
    command = ("template", "loss", CHART, "--values", CHART / "ci/production-values.yaml")

    assert helm.run(*command).stdout == helm.run(*command).stdout != ""
