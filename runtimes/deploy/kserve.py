"""The manifest of an InferenceService of KServe, whose one container speaks the Open Inference Protocol v2.

https://kserve.github.io/website/docs/reference/crd-api: a container of one's own says its protocol in an environment
variable, and is called `kserve-container`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from mer_export.errors import UsageError
from runtimes.deploy.container import PORT, TOKEN, USER, Serving

NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""What an InferenceService may be called, which becomes a label of a host name."""
SIZE = re.compile(r"[1-9][0-9]*(Mi|Gi)")
LIVE, READY = "/v2/health/live", "/v2/health/ready"
DRAIN, DEADLINE = 5, 30
"""Seconds for which it is still asked once its end is known, and the server's usual deadline for what was asked."""


@dataclass(frozen=True)
class Deployment:
    """What a cluster is told: the image, where the bundle comes from, and what a pod may take.

    `claim` is the PersistentVolumeClaim that holds the bundle in `folder`; None where the image has it. `secret` has
    the token under the key `token`; None for no token.
    """

    serving: Serving
    image: str
    claim: str | None
    folder: str
    secret: str | None
    memory: str


def check_name(name: str) -> str:
    """The name; raises UsageError for one that a service cannot have."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name}: at most 63 small letters, digits and -, a letter first: give another")
    return name


def check_memory(size: str) -> str:
    """The size; raises UsageError for what Kubernetes does not read."""
    if not SIZE.fullmatch(size):
        raise UsageError(f"--memory {size}: write a whole number with Mi or Gi, such as 2Gi")
    return size


def inference_service(deployment: Deployment) -> str:
    """The manifest as YAML."""
    return yaml.safe_dump(_service(deployment), sort_keys=False)


def _service(deployment: Deployment) -> dict[str, Any]:
    mounts, volumes = _volumes(deployment)
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": deployment.serving.model,
            # Plain Deployments: Knative has no preStop, and ends a pod that still answers.
            "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"},
        },
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "terminationGracePeriodSeconds": DRAIN + DEADLINE + 10,
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": USER,
                    "runAsGroup": USER,
                    "fsGroup": USER,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [_container(deployment, mounts)],
                "volumes": volumes,
            }
        },
    }


def _container(deployment: Deployment, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    serving = deployment.serving
    takes = {"cpu": str(serving.workers), "memory": deployment.memory}
    return {
        "name": "kserve-container",
        "image": deployment.image,
        "args": serving.options,
        "env": [{"name": "PROTOCOL", "value": "v2"}],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "resources": {"requests": dict(takes), "limits": dict(takes)},
        # What is loaded and run once before anything listens may take its time.
        "startupProbe": _probe(READY, periodSeconds=2, failureThreshold=150),
        "readinessProbe": _probe(READY, periodSeconds=5, timeoutSeconds=5),
        "livenessProbe": _probe(LIVE, periodSeconds=10, timeoutSeconds=5),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(DRAIN)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }


def _probe(path: str, **seconds: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": PORT}, **seconds}


def _volumes(deployment: Deployment) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Where the container finds things, and what these are."""
    mounts: list[dict[str, Any]] = [{"name": "scratch", "mountPath": "/tmp"}]
    volumes: list[dict[str, Any]] = [{"name": "scratch", "emptyDir": {}}]
    if deployment.claim:
        place = {"mountPath": deployment.serving.folder, "subPath": deployment.folder}
        mounts.append({"name": "bundle", **place, "readOnly": True})
        volumes.append({"name": "bundle", "persistentVolumeClaim": {"claimName": deployment.claim, "readOnly": True}})
    if deployment.secret:
        place = {"mountPath": str(PurePosixPath(TOKEN).parent)}
        mounts.append({"name": "token", **place, "readOnly": True})
        volumes.append({"name": "token", "secret": {"secretName": deployment.secret, "defaultMode": 0o440}})
    return mounts, volumes
