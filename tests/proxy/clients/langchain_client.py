"""langchain-openai, unmodified: a chain over the chat model, streamed and in a batch. Prints one JSON object."""

import json

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

chat = ChatOpenAI(model="any", temperature=0, max_tokens=8, max_retries=0)
found = {"chat": chat.invoke([SystemMessage("be brief"), HumanMessage("one two three")]).content}
chain = ChatPromptTemplate.from_messages([("human", "say {word} now")]) | chat
found["chain"] = chain.invoke({"word": "it"}).content
found["batch"] = [m.content for m in chain.batch([{"word": "a"}, {"word": "b"}])]
chunks = list(ChatOpenAI(model="any", temperature=0, stream_usage=True).stream("one two three"))
found["stream"] = "".join(chunk.content for chunk in chunks)
found["usage"] = next(c.usage_metadata["output_tokens"] for c in reversed(chunks) if c.usage_metadata)
found["text"] = OpenAI(model="any", temperature=0, max_tokens=4).invoke("one two three")
try:
    chat.bind(response_format={"type": "json_object"}).invoke("a")
    found["format"] = "answered"
except openai.BadRequestError as error:
    found["format"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
