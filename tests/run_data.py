"""The data of the ready-made run files that bring their own: `python -m tests.run_data` writes harness/runs/data/.

Made from word lists, so that it is nobody's, and so that what is held out has other words than what is trained on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "harness" / "runs" / "data"
SYSTEM = "You sort the mail of a lamp shop. Answer with JSON: topic (delivery, invoice, broken or return) and urgent."
TOPICS = {
    "delivery": ("my {thing} has not arrived", "when does the {thing} come", "the parcel with the {thing} is lost"),
    "invoice": (
        "the bill for the {thing} is wrong",
        "please send the receipt of the {thing} again",
        "I was charged twice for the {thing}",
    ),
    "broken": ("the {thing} flickers", "the {thing} came with a crack", "my new {thing} does not switch on"),
    "return": (
        "I want to send the {thing} back",
        "how do I return the {thing}",
        "the {thing} is too large, take it back please",
    ),
}
HASTE = ("It cannot wait.", "I need an answer today.", "This is the third time I ask!", "Please hurry.")
CALM = ("No rush.", "Whenever you have time.", "Thanks in advance.", "Have a nice day.")
GREETING = ("Hello,", "Hi there,", "Good morning,", "Dear shop,", "")
THINGS = ("desk lamp", "ceiling light", "floor lamp", "lantern", "reading light", "bedside lamp", "spotlight")
HELD_OUT_THINGS = ("chandelier", "wall light", "night light")
CITIES = ("Oslo", "Lima", "Cairo", "Perth", "Quito", "Turin", "Osaka", "Lagos", "Boston", "Delhi")
HELD_OUT_CITIES = ("Bergen", "Cusco", "Kyoto", "Adelaide")
SKIES = {"sun": "sunshine", "rain": "rain", "snow": "snow", "fog": "fog", "cloud": "clouds"}


def mail(count: int, things: tuple[str, ...], chance: random.Random) -> Iterator[dict[str, object]]:
    """Chats of a customer and a desk that answers in JSON."""
    for _ in range(count):
        topic = chance.choice(list(TOPICS))
        urgent = chance.random() < 0.5
        text = chance.choice(TOPICS[topic]).format(thing=chance.choice(things))
        words = (chance.choice(GREETING), f"{text}.", chance.choice(HASTE if urgent else CALM))
        answer = json.dumps({"topic": topic, "urgent": urgent})
        yield {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": " ".join(word for word in words if word)},
                {"role": "assistant", "content": answer},
            ]
        }


def weather(count: int, cities: tuple[str, ...], chance: random.Random) -> Iterator[dict[str, object]]:
    """A row of a table, and the sentence that says it."""
    for _ in range(count):
        city, sky, low = chance.choice(cities), chance.choice(list(SKIES)), chance.randint(-15, 25)
        high, wind = low + chance.randint(2, 12), chance.randint(1, 60)
        sentence = f" {city} expects {SKIES[sky]} with {low} to {high} degrees"
        sentence += " and a calm day." if wind < 15 else f" and wind of {wind} km/h."
        yield {"prompt": f"city={city} sky={sky} low={low} high={high} wind={wind}\nReport:", "completion": sentence}


def files() -> dict[str, str]:
    """Name -> content."""
    chance, out = random.Random(0), {}
    for name, make, known, new in (
        ("mail", mail, THINGS, HELD_OUT_THINGS),
        ("weather", weather, CITIES, HELD_OUT_CITIES),
    ):
        for part, count, words in (("train", 480, known), ("test", 48, new)):
            rows = [json.dumps(row) for row in make(count, words, chance)]
            out[f"{name}-{part}.jsonl"] = "\n".join(rows) + "\n"
    return out


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
