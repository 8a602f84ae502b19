"""huggingface_hub's InferenceClient, unmodified: chat by OpenAI's route, text generation as TGI's. Prints JSON."""

import json
import os

import huggingface_hub
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

BASE, TOKEN = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
found = {"version": huggingface_hub.__version__}

chat = InferenceClient(base_url=BASE, api_key=TOKEN)
answer = chat.chat_completion([{"role": "user", "content": "one two three"}], max_tokens=3, seed=1, top_p=0.9)
found["chat"] = answer.choices[0].message.content
found["stream"] = "".join(
    chunk.choices[0].delta.content or ""
    for chunk in chat.chat_completion([{"role": "user", "content": "one two three"}], stream=True)
)
try:
    chat.chat_completion([{"role": "user", "content": "a"}], temperature=3)
    found["refused"] = "answered"
except HfHubHTTPError as error:
    found["refused"] = error.response.status_code

tgi = InferenceClient(model=BASE.removesuffix("/v1"), token=TOKEN)
found["text"] = tgi.text_generation("one two three", max_new_tokens=2)
details = tgi.text_generation(
    "one two three", max_new_tokens=3, details=True, decoder_input_details=True, top_n_tokens=2, stop=["x"], seed=7
)
found["details"] = [details.generated_text, details.details.finish_reason, details.details.generated_tokens]
found["tgi_stream"] = list(tgi.text_generation("one two three", stream=True, max_new_tokens=3))
streamed = tgi.text_generation("one two three", stream=True, max_new_tokens=3, details=True)
found["tgi_stream_details"] = [[t.token.text, t.token.id, t.generated_text] for t in streamed]
found["logprob"] = details.details.tokens[0].logprob if details.details.tokens else None
found["prefill"] = [token.text for token in details.details.prefill]
print(json.dumps(found))
