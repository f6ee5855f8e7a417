"""The forms of requests and answers, for /openapi.json, and what clients of Hugging Face's toolkit send beside them."""

from typing import Any

_TEXT: dict[str, Any] = {"type": "string"}
_PAIR = {"type": "object", "properties": {"text": _TEXT, "text_pair": _TEXT}, "required": ["text"]}
_INPUT = {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}, _PAIR]}
_OPTIONS = {
    "type": "object",
    "properties": {
        "adapter": {"type": "string", "description": "an adapter of the model, as GET /v1/models lists them"},
        "aggregation_strategy": {"type": "string", "enum": ["first", "average", "max"]},
        "strict": {"type": "boolean"},
        "top_k": {"type": ["integer", "null"]},
        "threshold": {"type": "number"},
        "words": {
            "type": "boolean",
            "description": "for texts that are classified: how much each word mattered to the best label, by leaving "
            "it out",
        },
    },
}
_ENTITIES = [[{"entity_group": "protein", "score": 0.98, "word": "IL-2", "start": 0, "end": 4}], []]
_LABELS = [{"label": "pos", "score": 0.97}]


def _content(schema: dict[str, Any], **examples: Any) -> dict[str, Any]:
    named = {name: {"value": value} for name, value in examples.items()}
    return {"application/json": {"schema": schema, "examples": named}}


def _answers(**examples: Any) -> dict[str, Any]:
    error = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
    refusals = {"400": "not JSON", "404": "no such model or adapter", "413": "a limit is exceeded",
                "415": "another content type", "422": "wrong types, options or images",
                "429": "too many wait; see Retry-After", "503": "the service is being stopped",
                "504": "not ready in time"}  # fmt: skip
    return {
        "200": {"description": "The answer", "content": _content({}, **examples)},
        **{
            status: {"description": text, "content": {"application/json": {"schema": error}}}
            for status, text in refusals.items()
        },
    }


PREDICT: dict[str, Any] = {
    "description": "One prediction for each input, in order, as the pipeline gives it. Images are base64 in JSON, or "
    'the files of a multipart body, whose field "options" is JSON. NAME+ADAPTER chooses an adapter.',
    "requestBody": {
        "required": True,
        "content": {
            **_content(
                {
                    "type": "object",
                    "properties": {"inputs": {"type": "array", "items": _INPUT}, "options": _OPTIONS},
                    "required": ["inputs"],
                },
                texts={"inputs": ["IL-2 binds its receptor.", "No entity here."]},
                words={"inputs": [["IL-2", "binds"]], "options": {"aggregation_strategy": "average"}},
                labels={"inputs": ["a fine film"], "options": {"top_k": 2}},
                pairs={"inputs": [{"text": "It rains.", "text_pair": "It is wet."}]},
            ),
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "options": _TEXT,
                    },
                }
            },
        },
    },
    "responses": _answers(entities={"predictions": _ENTITIES}, labels={"predictions": _LABELS}),
}
TOOLKIT: dict[str, Any] = {
    "description": "The form of Hugging Face's inference toolkit: a single input gives its list, a list of inputs a "
    "list of predictions. An image may be the body itself.",
    "requestBody": {
        "required": True,
        "content": {
            **_content(
                {
                    "type": "object",
                    "properties": {
                        "inputs": {"oneOf": [_INPUT, {"type": "array", "items": _INPUT}]},
                        "parameters": _OPTIONS,
                    },
                    "required": ["inputs"],
                },
                text={"inputs": "IL-2 binds its receptor."},
                texts={"inputs": ["a fine film", "a dull film"], "parameters": {"top_k": 2}},
            ),
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "responses": _answers(one=_LABELS, several=_ENTITIES),
}
MODELS: dict[str, Any] = {
    "responses": _answers(
        models={
            "models": [{"name": "ner", "task": "token-classification", "labels": ["O", "B-protein"], "adapters": []}]
        }
    )
}
_TOKEN = "Needs the header Authorization: Bearer TOKEN."
LOAD: dict[str, Any] = {
    "description": f"{_TOKEN} The file lies on the machine of the service.",
    "requestBody": {
        "required": True,
        "content": _content(
            {"type": "object", "properties": {"path": _TEXT}, "required": ["path"]},
            file={"path": "/models/chemistry.onnx_adapter"},
        ),
    },
    "responses": _answers(adapter={"name": "chemistry", "labels": ["O", "B-chemical"], "bytes": 1200000}),
}
REMOVE: dict[str, Any] = {
    "description": _TOKEN,
    "responses": _answers(adapter={"removed": "chemistry"}),
}


def without_toolkit_defaults(value: dict[str, Any]) -> dict[str, Any]:
    """A request of the toolkit's form in our options.

    "simple", which there joins the pieces of a word as they come, is "first": here words are never cut. "parameters"
    that are null are left out, as is "options" beside "inputs", which told the hosted service how to queue.
    """
    value = {name: each for name, each in value.items() if name != "options"}
    parameters = value.get("parameters")
    if isinstance(parameters, dict):
        kept = {name: each for name, each in parameters.items() if each is not None or name == "top_k"}
        if kept.get("aggregation_strategy") == "simple":
            kept["aggregation_strategy"] = "first"
        value["parameters"] = kept
    return value
