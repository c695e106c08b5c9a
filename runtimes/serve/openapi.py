"""What the endpoints take and answer, as an OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mer_export import __version__
from mer_export.data.dialogues import MODALITIES, READY
from runtimes.serve.protocol import DTYPES
from runtimes.serve.reading import JSON, LINES
from runtimes.serve.recordings import FORM, READ_BY

Handler = Callable[[Request], Awaitable[Response]]
Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
ANY: Schema = {}


@dataclass(frozen=True)
class Endpoint:
    """One thing that can be asked. `takes` and `gives` name what is described below; `open` needs no token."""

    method: str
    path: str
    answer: Handler
    summary: str
    takes: str | None = None
    gives: str | None = None
    open: bool = False


def _object(required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def _list(of: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": of} | more


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


FEATURES: Schema = {
    "description": "one vector, or a list of them: the vectors of a text, the steps of a sequence",
    "anyOf": [_list(NUMBER, minItems=1), _list(_list(NUMBER, minItems=1), minItems=1)],
}
RECORDING: Schema = {
    "description": "a file of sound or video, where the model has encoders of it",
    "oneOf": [
        _object(["data"], data=TEXT | {"contentEncoding": "base64"}) | {"additionalProperties": False},
        _object(["part"], part=TEXT | {"description": "its name in the form"}) | {"additionalProperties": False},
    ],
}
SCHEMAS: dict[str, Schema] = {
    "error": _object(["error"], error=TEXT | {"description": "one sentence: what was wrong, and what to do"}),
    "utterance": _object(
        id=TEXT,
        speaker={"anyOf": [TEXT, {"type": "integer"}]},
        sentence=TEXT | {"description": "what is said, where the model reads words"},
        **dict.fromkeys(READ_BY, RECORDING),
        **dict.fromkeys(MODALITIES, FEATURES),
        **{
            name: {"type": "array", "description": f"{ready.dtype}, {ready.ndim} dims"} for name, ready in READY.items()
        },
    ),
    "dialogue": _object(
        ["utterances"], dialogue=TEXT, utterances=_list(_ref("utterance"), minItems=1), stream={"type": "boolean"}
    ),
    "spoken": {
        "allOf": [
            _ref("utterance"),
            _object(
                before=TEXT | {"description": "it came late: the unit before which it was spoken"},
                corrects=TEXT | {"description": "it is another reading of this unit"},
                revise={"type": "integer", "minimum": 0, "description": "earlier answers that are given anew"},
            ),
        ]
    },
    "answer": _object(
        ["model", "dialogue", "prediction", "revised"],
        model=TEXT,
        dialogue=TEXT,
        prediction=_ref("prediction"),
        revised=_list(_ref("prediction")),
    ),
    "dialogues": {
        "anyOf": [
            _ref("dialogue"),
            _object(["dialogues"], dialogues=_list(_ref("dialogue"), minItems=1), stream={"type": "boolean"}),
        ]
    },
    "prediction": _object(
        ["sample", "unit", "label", "modalities"],
        sample=TEXT,
        unit=TEXT,
        label={"type": ["string", "null"], "description": "null where nothing can be read, or overflow left it out"},
        labels=_list(TEXT),
        score={"type": ["number", "null"]},
        probabilities={"type": ["object", "null"], "additionalProperties": NUMBER},
        modalities=_list(TEXT),
    ),
    "predictions": _object(["model", "predictions"], model=TEXT, predictions=_list(_ref("prediction"))),
    "tensor": _object(
        ["name", "datatype", "shape"],
        name=TEXT,
        datatype={"enum": list(DTYPES)},
        shape=_list({"type": "integer", "minimum": 0}),
        parameters={"type": "object"},
        data=_list(ANY),
    ),
    "tensors": _object(
        ["inputs"],
        id=TEXT | {"maxLength": 256},
        inputs=_list(_ref("tensor"), minItems=1, maxItems=256),
        outputs=_list(_object(["name"], name=TEXT, parameters={"type": "object"}), maxItems=256),
        parameters={"type": "object"},
    ),
    "outputs": _object(
        ["model_name", "model_version", "outputs"],
        model_name=TEXT,
        model_version=TEXT,
        id=TEXT,
        outputs=_list(_ref("tensor")),
    ),
    "server": _object(["name", "version", "extensions"], name=TEXT, version=TEXT, extensions=_list(TEXT)),
    "model": _object(
        ["name", "inputs", "outputs"],
        name=TEXT,
        versions=_list(TEXT),
        platform=TEXT,
        inputs=_list(ANY),
        outputs=_list(ANY),
    ),
    "models": _object(["models"], models=_list({"type": "object"})),
    "any": {"type": "object"},
}
BYTES = "application/octet-stream"
TAKEN: dict[str, dict[str, Schema]] = {
    "tensors": {JSON: _ref("tensors")},
    "spoken": {JSON: _ref("spoken")},
    "dialogues": {
        JSON: _ref("dialogues"),
        LINES: TEXT,
        FORM: _object(dialogue=_ref("dialogues")) | {"additionalProperties": TEXT | {"format": "binary"}},
    },
}
GIVEN: dict[str | None, dict[str, Schema]] = {
    None: {JSON: _ref("any")},
    "page": {"text/html": TEXT},
    "metrics": {"text/plain": TEXT},
    "outputs": {JSON: _ref("outputs"), BYTES: TEXT | {"format": "binary"}},
    "predictions": {JSON: _ref("predictions"), LINES: TEXT},
}
REFUSED: dict[int, str] = {
    400: "not as the protocol says",
    401: "without the token",
    404: "no such model, or no such dialogue",
    408: "the body did not come in time",
    413: "too much at once",
    415: "a body of another type, or a recording that no encoder of the model reads",
    421: "asked under a foreign name",
    422: "the model cannot take it",
    500: "a fault of the server; the log says more",
    503: "no more at the moment: try again after Retry-After seconds",
    504: "no answer within the deadline",
}


def document(endpoints: Sequence[Endpoint], models: Sequence[str], most_bytes: int) -> Schema:
    """The document of a server with these models."""
    paths: dict[str, Schema] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, models)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mer serve",
            "version": __version__,
            "description": f"Bodies have at most {most_bytes} bytes. Lists of dialogues may also come as JSON lines.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, models: Sequence[str]) -> Schema:
    values: dict[str, Schema] = {"model": {"enum": list(models)}, "version": {"enum": ["1"]}}
    values["dialogue"] = {"minLength": 1, "maxLength": 200, "pattern": "^[A-Za-z0-9_.-]+$"}
    places = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", **values[name]}}
        for name in values
        if f"{{{name}}}" in endpoint.path
    ]
    given = GIVEN.get(endpoint.gives) or {JSON: _ref(str(endpoint.gives))}
    answers: Schema = {"200": {"description": "the answer", "content": {t: {"schema": s} for t, s in given.items()}}}
    error = {JSON: {"schema": _ref("error")}}
    answers |= {str(code): {"description": why, "content": error} for code, why in REFUSED.items()}
    operation = {"summary": endpoint.summary, "parameters": places, "responses": answers}
    if endpoint.takes:
        content = {t: {"schema": s} for t, s in TAKEN[endpoint.takes].items()}
        operation["requestBody"] = {"required": True, "content": content}
    return operation | ({} if endpoint.open else {"security": [{"token": []}, {}]})
