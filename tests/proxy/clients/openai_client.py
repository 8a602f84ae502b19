"""openai, unmodified: what an application does with it. Prints one JSON object."""

import asyncio
import json

import openai

client = openai.OpenAI(max_retries=0)  # address and token from the environment
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two three"}]
found = {"version": openai.VERSION, "models": [m.id for m in client.models.list()]}

answer = client.chat.completions.create(
    model=found["models"][0], messages=MESSAGES, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2
)
found["chat"] = answer.choices[0].message.content
found["chat_finish"] = answer.choices[0].finish_reason
found["chat_usage"] = [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens]
found["chat_logprobs"] = [
    [token.token, token.logprob, len(token.top_logprobs)] for token in answer.choices[0].logprobs.content
]

stream = client.chat.completions.create(
    model="any", messages=MESSAGES, stream=True, n=2, stream_options={"include_usage": True}
)
chunks = list(stream)
found["stream"] = [
    "".join(c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == i) for i in (0, 1)
]
found["stream_usage"] = chunks[-1].usage.completion_tokens
found["stream_roles"] = [c.choices[0].delta.role for c in chunks if c.choices and c.choices[0].delta.role]

with client.chat.completions.stream(model="any", messages=MESSAGES, seed=1) as helper:
    found["helper"] = helper.get_final_completion().choices[0].message.content

answer = client.completions.create(
    model="any", prompt=["a b", "c d"], n=2, best_of=2, max_tokens=5, echo=True, logprobs=1, stop="x", temperature=0
)
found["completions"] = [choice.text for choice in answer.choices]
found["completions_tokens"] = answer.choices[0].logprobs.tokens
found["completions_stream"] = "".join(
    chunk.choices[0].text for chunk in client.completions.create(model="any", prompt=[1, 2, 3], stream=True)
)
found["extra"] = client.completions.create(
    model="any", prompt="a", extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True}
).usage.total_tokens

for name, kwargs in {
    "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "format": {"response_format": {"type": "json_object"}},
    "range": {"temperature": 2.5},
    "beyond": {"n": 100},
}.items():
    try:
        client.chat.completions.create(model="any", messages=MESSAGES, **kwargs)
        found[name] = "answered"
    except openai.APIStatusError as error:  # BadRequestError, UnprocessableEntityError
        found[name] = [error.status_code, error.param, error.body["message"]]
try:
    list(client.completions.create(model="any", prompt="b break a", stream=True))
    found["broken"] = "ended as if whole"
except openai.APIError as error:
    found["broken"] = error.message
try:
    openai.OpenAI(api_key="wrong", max_retries=0).models.list()
    found["wrong_token"] = "let in"
except openai.AuthenticationError as error:
    found["wrong_token"] = error.status_code


async def many() -> list[str]:
    async with openai.AsyncOpenAI() as other:
        asked = [other.completions.create(model="any", prompt=f"p{i} q") for i in range(16)]
        return [answer.choices[0].text for answer in await asyncio.gather(*asked)]


found["many"] = asyncio.run(many())
print(json.dumps(found))
