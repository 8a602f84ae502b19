"""From bytes to checked fields, the same way in every protocol. Whatever is wrong is told, all of it at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema, from_json

from serve.protocols.base import Context
from serve.protocols.errors import RequestError

MAX_STOPS = 16
"""Stop texts per request; OpenAI takes 4, TGI 4 by default. Each is searched for at every token."""
MAX_TOP_LOGPROBS = 20
"""OpenAI's limit of top_logprobs."""

# boto3 sends application/octet-stream where ContentType is not given; curl and others may send nothing.
_JSON_TYPES = ("", "application/json", "application/octet-stream", "binary/octet-stream")

M = TypeVar("M", bound=BaseModel)


class Fields(BaseModel):
    """Strict: "3" is not a number and 1 is not a truth value. A field that is null is as good as absent (`check`)."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def decode(raw: bytes, content_type: str, context: Context) -> dict[str, Any]:
    """The body's JSON object. Raises RequestError 413, 415 or 400 for what is none.

    pydantic's parser (jiter), because it is iterative and strict: deep nesting, NaN, lone surrogates, invalid UTF-8
    and numbers of thousands of digits are errors with a position, in milliseconds, where json recurses or accepts.
    """
    if len(raw) > context.max_body_bytes:
        raise RequestError(
            413,
            f"the body has {len(raw)} bytes; this endpoint takes {context.max_body_bytes}, which is more than "
            f"{context.max_sequences} prompts of n_positions {context.n_positions} tokens need",
        )
    _check_content_type(content_type)
    try:
        body = from_json(raw.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError(400, f"the body must be a JSON object, not {type_name(body)}")
    return body


def _check_content_type(content_type: str) -> None:
    kind, _, rest = content_type.partition(";")
    if kind.strip().lower() not in _JSON_TYPES:
        raise RequestError(415, f"Content-Type is {kind.strip()}; send the request as application/json")
    name, _, charset = rest.partition("=")
    if name.strip().lower() == "charset" and charset.strip(' "').lower() not in ("utf-8", "utf8", "us-ascii"):
        raise RequestError(415, f"charset is {charset.strip()}; JSON is sent as UTF-8")


def check(model: type[M], given: Mapping[str, Any], problems: list[str], prefix: str = "") -> M | None:
    """The fields in their types; None after adding every problem to `problems`. Null means not given.

    JSON has one kind of number, and some clients write 8 as 8.0.
    """
    values = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in given.items() if v is not None}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems.extend(_line(e, list(model.model_fields), prefix) for e in error.errors(include_url=False))
        return None


def _line(error: ErrorDetails, known: Sequence[str], prefix: str) -> str:
    where = prefix + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"]).removeprefix(".")
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        close = get_close_matches(name, known, n=1) if len(error["loc"]) == 1 else []
        return f"{where}: not known" + (f'; did you mean "{close[0]}"?' if close else "")
    if error["loc"][-1] == "[key]":
        field = prefix + ".".join(map(str, error["loc"][:-2]))
        return f"{field}: key {error['loc'][-2]!r:.40} {error['msg'].replace('String should', 'must')}"
    if error["type"] == "missing":
        return f"{where}: missing"
    said = error["msg"].replace("Input should be", "must be")
    said = said.replace("a valid dictionary", "an object").replace("a valid list", "an array")
    if isinstance(value, (str, int, float)) and error["type"] != "custom":
        said += f", not {value!r:.60}"
    return f"{where}: {said}"


def type_name(value: Any) -> str:
    """A JSON value's type in JSON's words."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def wrong(message: str) -> PydanticCustomError:
    """A validator's refusal, told as it is."""
    return PydanticCustomError("custom", "{said}", {"said": message})


class Unsupported:
    """Marks a field that this endpoint has no use for: values that ask for nothing pass, others are refused.

    `name: Annotated[Any, Unsupported("why not", neutral values...)] = None`
    """

    def __init__(self, reason: str, *neutral: Any) -> None:
        self.reason, self.neutral = reason, neutral

    def _check(self, value: Any) -> Any:
        if any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in self.neutral):
            return value
        raise wrong(self.reason)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [*self.neutral, None], "description": f"Other values are refused: {self.reason}"}


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise wrong("must be a text or a list of texts, none of them empty")
    if len(stops) > MAX_STOPS:
        raise wrong(f"{len(stops)} stop texts; at most {MAX_STOPS}")
    return stops


Stops = Annotated[
    list[str],
    PlainValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOPS},
            ]
        }
    ),
]


# No count or size here means anything beyond 32 bits, and arrays of numpy and torch could not hold it.
Whole = Annotated[int, Field(lt=2**31)]


def _seed(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**64:
        raise wrong("must be a whole number of 64 bits (-2**63 to 2**64 - 1)")
    return int(value)


Seed = Annotated[
    int, PlainValidator(_seed), WithJsonSchema({"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1})
]
"""Signed as OpenAI's or unsigned as TGI's."""


def check_prompt_length(text: str, where: str, context: Context) -> Iterator[str]:
    """A problem if the text cannot fit into n_positions whatever its tokens are; nothing is tokenised for it."""
    size = len(text.encode()) if len(text) * 4 > context.max_prompt_bytes else len(text)
    if size > context.max_prompt_bytes:
        yield (
            f"{where}: {size} bytes of text; no token is longer than {context.longest_token} bytes, so that is more "
            f"than n_positions {context.n_positions} tokens"
        )


def check_sequences(count: int, what: str, context: Context) -> Iterator[str]:
    """A problem if that is more than the endpoint answers at once."""
    if count > context.max_sequences:
        yield f"{what}: {count} sequences; max_batch_size is {context.max_sequences}: send parts"


def refuse(malformed: Sequence[str], beyond: Sequence[str]) -> None:
    """Raises RequestError with all there is to say: 400 if anything is malformed, else 422 for what is beyond this
    endpoint."""
    if malformed or beyond:
        raise RequestError(400 if malformed else 422, *malformed, *beyond)
