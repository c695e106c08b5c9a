"""`mer package`: what a cluster needs to serve a bundle."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from mer_export import __version__
from mer_export.bundle import Bundle
from mer_export.console import BundleArg, Force, Json, Out, Precision, Quiet, Runtime, Verbose, emit


def package(
    bundle: BundleArg,
    out: Out,
    bake: Annotated[bool, typer.Option("--bake", help="Put the bundle into the image; else it is mounted.")] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="What service and model are called; default by the bundle's directory.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="NAME", help="The image in the manifest; default NAME:VERSION.")
    ] = None,
    claim: Annotated[
        str | None,
        typer.Option(
            "--claim", metavar="NAME", help="PersistentVolumeClaim with the bundle's directory; default bundles."
        ),
    ] = None,
    token_secret: Annotated[
        str | None,
        typer.Option(
            "--token-secret", metavar="NAME", help="Secret whose key `token` is asked for; default NAME-token."
        ),
    ] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Whoever reaches the service may ask.")] = False,
    runtime: Runtime = None,
    precision: Precision = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Sessions, and CPUs of a pod.")] = 2,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Memory of a pod, such as 2Gi.")] = "2Gi",
    force: Force = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a Dockerfile, pinned requirements and a KServe manifest that serve a bundle on CPUs, without PyTorch."""
    from mer_export.errors import UsageError
    from runtimes.deploy.container import TOKEN, Serving
    from runtimes.deploy.kserve import Deployment, check_memory, check_name
    from runtimes.deploy.needs import needs_of
    from runtimes.deploy.package import SERVICE, Package

    if bake and claim:
        raise UsageError("--bake puts the bundle into the image, --claim mounts it: leave one of them out")
    if no_token and token_secret:
        raise UsageError("--no-token asks for none: leave --token-secret out")
    opened, folder = Bundle.open(bundle), bundle.resolve().name
    needs = needs_of(opened, runtime, precision or "fp32")
    name = check_name(name or re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-"))
    serving = Serving(name, needs.runtime, needs.precision, workers, token=not no_token)
    secret = None if no_token else token_secret or f"{name}-token"
    image = image or f"{name}:{__version__}"
    deployment = Deployment(serving, image, None if bake else claim or "bundles", folder, secret, check_memory(memory))
    written = Package(opened, needs, deployment, bake).write(out, force)
    mounts = [] if bake else ["-v", f"{bundle.resolve()}:{serving.folder}:ro"]
    mounts += [] if no_token else ["-v", f"TOKEN_FILE:{TOKEN}:ro"]
    then = {
        "build": f"docker build -t {image} {out}",
        "run": " ".join(["docker run --read-only --tmpfs /tmp -p 8080:8080", *mounts, image]),
        "apply": f"kubectl apply -f {out / SERVICE}",
    }
    if secret:
        then["secret"] = f"kubectl create secret generic {secret} --from-file=token=TOKEN_FILE"
    made = {"out": str(out), "files": written, "extras": needs.extras, "variants": [v.name for v in needs.variants]}
    emit(made | then, as_json, lambda: [f"{out}: {', '.join(written)}", *then.values()])
