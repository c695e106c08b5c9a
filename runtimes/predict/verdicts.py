"""What the last `mer parity` found wrong with the files of a bundle, for those who choose among them."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from mer_export.bundle import Bundle
from mer_export.errors import BundleError
from mer_export.registry import first_problem

PATH = "reports/parity.json"


class Candidate(BaseModel):
    """The part of a candidate's report that a choice depends on. `sha256` is that of the file which was judged; reports
    of earlier releases have none."""

    runtime: str
    variant: str | None
    verdict: str
    sha256: str = ""


class Verdicts(BaseModel):
    """The part of the report of parity that a choice depends on."""

    weights_sha256: str
    candidates: list[Candidate]


def failed(bundle: Bundle) -> set[tuple[str, str]]:
    """(runtime, variant) that failed parity, of the files and weights that are in the bundle now.

    Raises:
        BundleError: the report cannot be read.
    """
    files = bundle.manifest.files
    if PATH not in files:
        return set()
    try:
        found = Verdicts.model_validate_json(bundle.path(PATH).read_bytes())
    except ValidationError as error:
        raise BundleError(
            f"{bundle.root}: {PATH} cannot be read ({first_problem(error)}): run mer parity again"
        ) from None
    if found.weights_sha256 != bundle.manifest.weights.sha256:
        return set()
    now = {v.name: files[v.model].sha256 for v in bundle.manifest.variants}
    return {
        (c.runtime, c.variant)
        for c in found.candidates
        if c.verdict == "fail" and c.variant in now and c.sha256 in ("", now[c.variant])
    }
