"""Checks Kubernetes documents against KubeRay's custom resource definitions, as an API server with strict field
validation does.

The definitions hold the schemas of pods, services, claims and network policies too, so those of other kinds of
documents are checked by them as well. What is written as CEL rules (x-kubernetes-validations) is not checked.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

Schema = dict[str, Any]


def job_schema(folder: Path) -> Schema:
    """The schema of a RayJob, version v1."""
    with gzip.open(folder / "ray.io_rayjobs.yaml.gz", "rt", encoding="utf-8") as file:
        definition = yaml.load(file, yaml.CSafeLoader)
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    return strict(version["schema"]["openAPIV3Schema"])


def strict(schema: Schema) -> Schema:
    """The schema that refuses fields which it does not know; an API server drops them without a word."""
    schema = dict(schema)
    if "properties" in schema:
        schema["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema["additionalProperties"] = False
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            schema[word] = strict(schema[word])
    return schema


def part(schema: Schema, *path: str) -> Schema:
    """The schema of what stands at the path; a list's items are "[]"."""
    for name in path:
        schema = schema["items"] if name == "[]" else schema["properties"][name]
    return schema


def errors(schema: Schema, document: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in _Validator(schema).iter_errors(document)]


def document_schemas(job: Schema) -> dict[str, Schema]:
    """A schema for each kind of document that there is among the manifests."""
    cluster = part(job, "spec", "rayClusterSpec")
    template = part(cluster, "headGroupSpec", "template")
    ephemeral = part(template, "spec", "volumes", "[]", "ephemeral", "volumeClaimTemplate")
    policy = part(cluster, "networkPolicy", "head")
    peers = {"ingress": part(policy, "ingressRules"), "egress": part(policy, "egressRules")}
    strings = {"type": "object", "additionalProperties": {"type": "string"}}
    labels = part(template, "spec", "affinity", "podAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "[]")
    selector = part(labels, "labelSelector")
    replicated = {"replicas": {"type": "integer"}, "selector": selector, "template": template}
    return {
        "RayJob": part(job, "spec"),
        "Service": part(cluster, "headGroupSpec", "headService", "spec"),
        "PersistentVolumeClaim": part(ephemeral, "spec"),
        "ConfigMap": _object({"data": strings, "binaryData": strings, "immutable": {"type": "boolean"}}, "data"),
        "Deployment": _object(
            replicated | {"strategy": _object({"type": {"enum": ["Recreate", "RollingUpdate"]}})},
            "selector",
            "template",
        ),
        "StatefulSet": _object(
            replicated
            | {"serviceName": {"type": "string"}, "volumeClaimTemplates": {"type": "array", "items": ephemeral}},
            *("selector", "template", "serviceName"),
        ),
        "NetworkPolicy": _object(
            {"podSelector": selector, "policyTypes": {"items": {"enum": ["Ingress", "Egress"]}}} | peers, "podSelector"
        ),
    }


def _object(properties: dict[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _unique_keys(validator: Any, keys: list[str], items: Any, schema: Schema) -> Iterator[ValidationError]:
    """A list that stands for a map has each key once."""
    seen = [tuple(item.get(key) for key in keys) for item in items if isinstance(item, dict)]
    if twice := {one for one in seen if seen.count(one) > 1}:
        yield ValidationError(f"{', '.join(keys)} must be unique, and these are not: {sorted(map(str, twice))}")


_Validator = extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _unique_keys})
