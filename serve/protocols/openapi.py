"""The OpenAPI 3.1 description of what the handler takes and gives, made from the models that check the requests.

`harness proxy` serves it as /openapi.json; it is published as harness/openapi.json (`make generated`).
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from serve.protocols.lmi import LmiBody, LmiParameters
from serve.protocols.openai import ChatBody, CompletionBody, Message, StreamOptions

_MODELS = (LmiBody, LmiParameters, ChatBody, Message, CompletionBody, StreamOptions)
# Fields whose inner models are checked beside the others, so that all problems of a request are told at once.
_INNER: dict[tuple[str, str], dict[str, Any]] = {
    ("LmiBody", "parameters"): {"anyOf": [{"$ref": "#/components/schemas/LmiParameters"}, {"type": "null"}]},
    ("ChatBody", "messages"): {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}},
    ("ChatBody", "stream_options"): {"anyOf": [{"$ref": "#/components/schemas/StreamOptions"}, {"type": "null"}]},
    ("CompletionBody", "stream_options"): {
        "anyOf": [{"$ref": "#/components/schemas/StreamOptions"}, {"type": "null"}]
    },
}
_OFF = {"enum": [False, None]}


def _one_of_these(*ways: dict[str, Any]) -> dict[str, Any]:
    """At least one of the ways in which fields keep out of each other's way."""
    return {"anyOf": [{"properties": way} for way in ways]}


def _only_with(field: str, other: str) -> dict[str, Any]:
    return {
        "anyOf": [
            {"properties": {field: {"type": "null"}}},
            {"properties": {other: {"const": True}}, "required": [other]},
        ]
    }


# What contradicts itself is refused with 400, so the description says so as well.
_RULES: dict[str, list[dict[str, Any]]] = {
    "LmiBody": [
        _one_of_these({"stream": _OFF}, {"inputs": {"type": "string"}}),
        _one_of_these({"stream": _OFF}, {"parameters": {"properties": {"decoder_input_details": _OFF}}}),
    ],
    "LmiParameters": [_one_of_these({"stop": {"type": "null"}}, {"stop_sequences": {"type": "null"}})],
    "ChatBody": [
        _one_of_these({"max_tokens": {"type": "null"}}, {"max_completion_tokens": {"type": "null"}}),
        _only_with("top_logprobs", "logprobs"),
        _only_with("stream_options", "stream"),
    ],
    "CompletionBody": [
        _one_of_these({"stream": _OFF}, {"echo": _OFF}, {"logprobs": {"type": "null"}}),
        _only_with("stream_options", "stream"),
    ],
}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_NUMBER = {"type": ["number", "null"]}
_ERROR_TEXT = "One line; all problems at once."


def document(version: str) -> dict[str, Any]:
    """The whole description; `version` is the project's."""
    _, made = models_json_schema([(m, "validation") for m in _MODELS], ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = made["$defs"]
    for (model, field), schema in _INNER.items():
        inner = schemas[model]["properties"][field]
        schemas[model]["properties"][field] = {
            **{k: inner[k] for k in ("description", "title") if k in inner},
            **schema,
        }
    for model in ("ChatBody", "CompletionBody"):
        schemas[model]["properties"]["logit_bias"]["anyOf"][0]["additionalProperties"] = False  # but its pattern's
    for model, rules in _RULES.items():
        schemas[model]["allOf"] = rules
    schemas |= _answers()
    bodies = [_ref("LmiBody"), _ref("ChatBody"), _ref("CompletionBody")]
    answers = [_ref("LmiAnswer"), {"type": "array", "items": _ref("LmiAnswer")}]
    openai = [_ref("ChatCompletion"), _ref("Completion")]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "neuron-harness endpoint",
            "version": version,
            "description": "What an endpoint takes at /invocations, and what `harness proxy` offers for it.",
        },
        "security": [{"token": []}],
        "paths": {
            "/invocations": {
                "post": _operation(
                    "invoke",
                    "The endpoint itself: LMI, TGI, OpenAI chat or completions.",
                    bodies,
                    answers + openai,
                    "ModelError",
                )
            },
            "/v1/chat/completions": {
                "post": _operation("chat", "A chat completion.", [_ref("ChatBody")], [_ref("ChatCompletion")])
            },
            "/v1/completions": {
                "post": _operation("complete", "Completions.", [_ref("CompletionBody")], [_ref("Completion")])
            },
            "/v1/models": {
                "get": {
                    "operationId": "models",
                    "summary": "The one model that the endpoint serves.",
                    "responses": {
                        "200": {"description": "A list of one.", "content": _json(_ref("Models"))},
                        "401": _error("No token, or a wrong one."),
                    },
                }
            },
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "Only of the proxy."}},
        },
    }


def _operation(
    name: str, summary: str, bodies: list[Any], answers: list[Any], error: str = "Error"
) -> dict[str, Any]:
    one_of = bodies[0] if len(bodies) == 1 else {"oneOf": bodies}
    streams: dict[str, Any] = {"text/event-stream": {}, "application/jsonlines": {}}
    whole = answers[0] if len(answers) == 1 else {"anyOf": answers}
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": _json(one_of)},
        "responses": {
            "200": {"description": "The answer; a stream where `stream` is true.", "content": _json(whole) | streams},
            "400": _error("The request is malformed or contradicts itself.", error),
            "401": _error("No token, or a wrong one; only of the proxy."),
            "413": _error("The body is longer than anything that fits.", error),
            "415": _error("The body is not JSON by its Content-Type.", error),
            "422": _error("Well-formed, and more than this endpoint does.", error),
            "429": _error("Too many requests; repeat it later."),
            "500": _error("The engine failed; the log has the reason.", error),
            "502": _error("The proxy got no answer that it understands."),
            "503": _error("The endpoint is starting, stopping or full; repeat the request.", error),
            "504": _error("The endpoint did not answer in SageMaker's time."),
        },
    }


def _answers() -> dict[str, Any]:
    """The bodies of answers; what is not listed here may be added, so that clients should not refuse it."""
    usage = _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT})
    common = {"id": _TEXT, "created": _COUNT, "model": _TEXT, "usage": usage}
    ended = {"index": _COUNT, "finish_reason": {"enum": ["stop", "length"]}, "logprobs": {"type": ["object", "null"]}}
    message = _object({"role": {"const": "assistant"}, "content": _TEXT})
    token = {"type": "object", "properties": {"id": {"type": "integer"}, "text": _TEXT, "log_prob": _NUMBER}}
    details = {
        "type": "object",
        "properties": {
            "finish_reason": {"enum": ["eos_token", "stop_sequence", "length", "timeout", "error"]},
            "generated_tokens": _COUNT,
            "prompt_tokens": _COUNT,
            "inputs": _TEXT,
            "tokens": {"type": "array", "items": token},
            "prefill": {"type": "array", "items": token},
        },
        "required": ["finish_reason"],
    }
    model = _object({"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT})
    error = _object(
        {
            "message": _TEXT | {"description": _ERROR_TEXT},
            "type": _TEXT,
            "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        }
    )
    return {
        "LmiAnswer": {
            "type": "object",
            "properties": {"generated_text": _TEXT, "details": details},
            "required": ["generated_text"],
        },
        "ChatCompletion": _object(
            {
                **common,
                "object": {"const": "chat.completion"},
                "choices": {"type": "array", "items": _object({**ended, "message": message})},
            }
        ),
        "Completion": _object(
            {
                **common,
                "object": {"const": "text_completion"},
                "choices": {"type": "array", "items": _object({**ended, "text": _TEXT})},
            }
        ),
        "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": model}}),
        "ModelError": _object({"error": _TEXT | {"description": _ERROR_TEXT}, "code": {"type": "integer"}}),
        "Error": _object({"error": error}),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _error(description: str, schema: str = "Error") -> dict[str, Any]:
    return {"description": description, "content": _json(_ref(schema))}
