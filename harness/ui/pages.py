"""The three pages: runs, one run, a chat with its endpoints. NiceGUI draws them and calls back.

Whatever asks SageMaker or reads files runs in a thread, so that the page answers meanwhile.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import app, background_tasks, run as threads, ui
from starlette.responses import FileResponse, PlainTextResponse, Response

from harness.errors import HarnessError
from harness.record import Record
from harness.run import platforms
from harness.run.report import COLOURS
from harness.ui import commands, shown
from harness.ui.shown import Actions, Curve
from harness.ui.watch import Watch, problems_of, record_of, said

EVERY = 2.0  # seconds between looks at SageMaker; a page shows what was found twice as often
INTERRUPTED = 130  # the exit code of a verb that Stop has ended
MODELS = {"base": "Before fine-tuning", "tuned": "After fine-tuning"}
STYLE = """
body { --nicegui-default-padding: 1rem; }
h1 { font-size: 1.4rem; line-height: 1.3; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; line-height: 1.3; }
h3 { font-size: 1rem; line-height: 1.3; margin-top: .8rem; }
.bar { display: flex; height: 1.4rem; width: 100%; position: relative; border: 1px solid currentColor; }
.bar > span { height: 100%; } .bar > .limit { position: absolute; width: 2px; background: currentColor; }
.terms td, .terms th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top; }
summary { display: list-item; cursor: pointer; }
.dot { display: inline-block; width: .7em; height: .7em; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: .85rem; }
.bad { color: #b3261e; } .body--dark .bad { color: #ff8a80; }
a { color: #0063a3 !important; } .body--dark a { color: #7cc4f0 !important; } header a { color: white !important; }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; }
.log { height: 18rem; overflow: auto; width: 100%; border: 1px solid #8886; padding: .5rem; }
:focus-visible { outline: 2px solid #e69f00; outline-offset: 2px; }
"""


def install(watch: Watch) -> None:
    """Register the pages, and the look at SageMaker that they share."""

    async def look() -> None:
        if app.clients("/") or app.clients("/run/{run_id}") or app.clients("/chat/{run_id}"):
            await threads.io_bound(watch.refresh)  # where nobody looks, nothing is asked

    ui.add_css(STYLE, shared=True)
    app.timer(EVERY, look)

    def runs() -> None:
        _runs_page(watch)

    def run(run_id: str) -> None:
        _run_page(watch, run_id)

    def chat(run_id: str) -> None:
        _chat_page(watch, run_id)

    ui.page("/", title="runs - harness")(runs)
    ui.page("/run/{run_id}", title="run - harness")(run)
    ui.page("/chat/{run_id}", title="chat - harness")(chat)

    app.get("/report/{run_id}")(_report)


def _report(run_id: str) -> Response:
    record = record_of(run_id)
    page = record.path / "report.html" if record is not None else Path()
    return FileResponse(page) if page.is_file() else PlainTextResponse("this run has no report yet", 404)


# -- what every page has


@contextmanager
def _frame(watch: Watch, title: str) -> Iterator[None]:
    ui.colors(primary=COLOURS[0])
    with ui.header().classes("items-center gap-6"):
        ui.link("harness: all runs", "/").classes("text-white text-lg font-bold")
        billed = ui.label().props('role="status"')
    main = ui.column().classes("w-full max-w-5xl mx-auto gap-4").props('role="main"')
    ui.skip_link(target=main)
    with main:
        _heading(title, 1)
        yield

    def tell() -> None:
        billed.set_text(watch.failed or watch.billed or "nothing is billed")
        for command in watch.ended():
            if command.exit_code == INTERRUPTED:
                _notify("\n".join(problems_of(command)))
            elif command.exit_code:
                first = f"harness {' '.join(command.words)} ended with exit code {command.exit_code}"
                _notify("\n".join([first, *problems_of(command)]), bad=True)

    ui.timer(EVERY / 2, tell)


def _heading(text: str, level: int) -> None:
    ui.html(html.escape(text), tag=f"h{level}", sanitize=False)


def _notify(text: str, bad: bool = False) -> None:
    kind = "negative" if bad else "info"
    close = [{"label": "close", "color": "white"}]
    ui.notify(text, type=kind, multi_line=True, actions=close, timeout=0 if bad else 8000, classes="said")


# -- runs


def _runs_page(watch: Watch) -> None:
    with _frame(watch, "Runs"):
        _heading("Start a run", 2)
        _start(watch)
        _heading("Runs in this directory", 2)
        names = ("run", "platform", "training", "score", "endpoints", "cost")
        columns = [{"name": name, "label": name, "field": name, "align": "left"} for name in names]
        table = ui.table(columns=columns, rows=[], row_key="run").classes("w-full")
        cell = (
            """<q-td :props="props"><a class="underline" :href="'/run/' + props.value">{{ props.value }}</a></q-td>"""
        )
        table.add_slot("body-cell-run", cell)
        table.add_slot("no-data", "<span>none yet</span>")

    def show() -> None:
        rows = [shown.row(run) for run in watch.runs]
        if rows != table.rows:
            table.rows = rows

    ui.timer(EVERY / 2, show)


def _start(watch: Watch) -> None:
    """Choose a run file and a platform; look at the plan; start it."""
    files = shown.run_files()
    with ui.row().classes("items-end gap-4 w-full"):
        file = ui.select(files, label="Run file", value=files[0]).classes("min-w-64")
        platform = ui.select(list(platforms.NAMES), label="Platform", value=platforms.NAMES[0]).classes("min-w-32")
        check = ui.button("Check and price").props("outline")
        begin = ui.button("Start")
    place = ui.html("", sanitize=False).classes("w-full").props('aria-live="polite"')

    async def plan() -> None:
        place.set_content("checking …")
        try:
            place.set_content(await threads.io_bound(shown.plan_html, str(file.value), str(platform.value)) or "")
        except HarnessError as error:
            place.set_content(f'<p class="said bad">{html.escape(said(error))}</p>')

    def start() -> None:
        watch.start(["run", str(file.value), "--platform", str(platform.value)])
        _notify(f"harness run {file.value} is started; it appears below when its run file has been checked")

    check.on_click(plan)
    begin.on_click(start)


# -- one run


def _run_page(watch: Watch, run_id: str) -> None:
    record = record_of(run_id)
    if record is None:
        with _frame(watch, f"There is no run {run_id}"):
            ui.link("all runs", "/")
        return
    with _frame(watch, run_id):
        state = ui.label().props('role="status"').classes("text-lg")
        cost = ui.label()
        bar = ui.linear_progress(value=0, show_value=False).props('aria-label="steps of training"')
        buttons = _buttons(watch, record)
        verdict = ui.label().classes("answer")
        score = ui.table(columns=_columns("model", "score"), rows=[]).classes("min-w-64")
        report = ui.link("the whole report", f"/report/{run_id}", new_tab=True)
        _heading("Loss by step", 2)
        chart = ui.echart(_chart(Curve(())), renderer="svg").classes("w-full h-64")
        words = ui.label()
        _heading("Log", 2)
        log = (
            ui.html("", sanitize=False).classes("log said").props('tabindex="0" role="log" aria-label="training log"')
        )
    last: dict[str, Any] = {}

    async def show() -> None:
        found, status = await threads.io_bound(shown.view, record), watch.of(run_id)
        if found is None or status is None:
            return
        state.set_text(shown.state_line(status, found))
        cost.set_text(status.cost or ("" if status.platform == "sagemaker" else "this machine: nothing is billed"))
        bar.set_value(found.curve.step / found.curve.steps if found.curve.steps else 0)
        for name, possible in vars(shown.actions(status, found)).items():
            buttons[name].set_visibility(possible)
        verdict.set_text(found.verdict)
        rows = [{"model": name, "score": value} for name, value in found.scores]
        score.rows = rows
        for part in (score, report):
            part.set_visibility(bool(rows))
        if found.curve != last.get("curve"):
            last["curve"] = found.curve
            chart.options.clear()
            chart.options.update(_chart(found.curve))
            words.set_text(found.curve.told)
        if found.log != last.get("log"):
            last["log"] = found.log
            log.set_content(html.escape("\n".join(found.log)))
            ui.run_javascript(f"const e = getHtmlElement({log.id}); if (e) e.scrollTop = e.scrollHeight")

    ui.timer(EVERY / 2, show)


def _columns(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "label": name, "field": name, "align": "left"} for name in names]


def _chart(curve: Curve) -> dict[str, Any]:
    """Options of ECharts; `aria` makes it describe itself."""
    return {
        "animation": False,
        "aria": {"enabled": True, "label": {"description": curve.told}},
        "grid": {"left": 50, "right": 20, "top": 20, "bottom": 45},
        "xAxis": {"type": "value", "name": "step", "nameLocation": "middle", "nameGap": 28, "min": 0},
        "yAxis": {"type": "value", "name": "loss", "scale": True},
        "tooltip": {"trigger": "axis"},
        "series": [
            {
                "type": "line",
                "showSymbol": False,
                "color": COLOURS[0],
                "data": [list(point) for point in curve.points],
            }
        ],
    }


def _buttons(watch: Watch, record: Record) -> dict[str, Any]:
    """A button for each verb; the page shows those that make sense now."""
    run_id = record.id

    def interrupt() -> None:
        if commands.interrupt(record):
            _notify("stopping in order; what AWS runs goes on until it is taken down")

    words: dict[str, tuple[str, Callable[[], object]]] = {
        "stop": ("Stop", interrupt),
        "go_on": ("Continue", partial(watch.start, ["run", run_id])),
        "deploy_tuned": ("Deploy the tuned model", partial(watch.start, ["deploy", run_id])),
        "deploy_base": ("Deploy the base model", partial(watch.start, ["deploy", run_id, "--base"])),
        "chat": ("Chat", partial(ui.navigate.to, f"/chat/{run_id}")),
        "take_down": ("Take down", partial(watch.start, ["down", run_id])),
    }
    made: dict[str, Any] = {}
    with ui.row().classes("gap-3"):
        for name, (label, act) in words.items():
            # No second click while the first one's process starts.
            button = ui.button(label).props("outline" if name in ("stop", "take_down") else "")
            button.on_click(partial(_once, button, act))
            button.set_visibility(False)
            made[name] = button
    assert set(made) == set(Actions.__annotations__)
    return made


async def _once(button: Any, act: Callable[[], object]) -> None:
    button.disable()
    act()
    await asyncio.sleep(2 * EVERY)
    button.enable()


# -- a chat


def _chat_page(watch: Watch, run_id: str) -> None:
    record = record_of(run_id)
    if record is None:
        with _frame(watch, f"There is no run {run_id}"):
            ui.link("all runs", "/")
        return
    history: dict[str, list[dict[str, str]]] = {which: [] for which in MODELS}
    with _frame(watch, f"Chat with {run_id}"):
        ui.link("back to the run", f"/run/{run_id}")
        plain = ui.switch("Send the text as it is, without the chat template", value=shown.plain_prompts(record))
        places = _columns_of_answers()
        missing = ui.label().props('role="status"')
        with ui.row().classes("w-full items-end no-wrap"):
            prompt = ui.textarea("Message").props("autogrow outlined").classes("grow")
            send = ui.button("Send")

    def in_service() -> list[str]:
        status = watch.of(run_id)
        names = {e.name for e in status.endpoints if e.status == "InService"} if status is not None else set()
        return [which for which in MODELS if f"{run_id}-{which}" in names]

    def show() -> None:
        alive = in_service()
        for which, place in places.items():
            place.set_visibility(which in alive)
        missing.set_text("" if alive else "no endpoint of this run is InService: deploy one on the run's page")
        send.set_enabled(bool(alive))

    async def ask() -> None:
        text = str(prompt.value or "").strip("\n")
        if not text.strip():
            return
        prompt.set_value("")
        asked = [
            _ask(watch, run_id, which, history[which], text, bool(plain.value), places[which])
            for which in in_service()
        ]
        await asyncio.gather(*asked)

    send.on_click(ask)
    prompt.on("keydown.enter.exact.prevent", ask)
    ui.timer(EVERY / 2, show)


def _columns_of_answers() -> dict[str, Any]:
    places = {}
    with ui.row().classes("w-full gap-4 items-start"):
        for which, title in MODELS.items():
            with ui.column().classes("grow basis-80 min-w-0") as place:
                _heading(title, 2)
                place.props(f'role="log" aria-label="{title}"')
            places[which] = place
    return places


async def _ask(
    watch: Watch, run_id: str, which: str, history: list[dict[str, str]], text: str, plain: bool, place: Any
) -> None:
    """One model's answer, shown as it comes; what fails is shown in its place."""
    history.append({"role": "user", "content": text})
    with place:
        ui.chat_message(text, sent=True, name="you").classes("self-end")
        shown_answer = ui.label("…").classes("answer")
    pieces: list[str] = []
    try:
        async for piece in _in_thread(partial(watch.answer, run_id, which, list(history), plain)):
            pieces.append(piece)
            shown_answer.set_text("".join(pieces))
    except HarnessError as error:
        shown_answer.set_text(said(error))
        shown_answer.classes("said bad")
        history.pop()
        return
    shown_answer.set_text("".join(pieces) or "(an empty answer)")
    history.append({"role": "assistant", "content": "".join(pieces)})


async def _in_thread(make: Callable[[], Iterator[str]]) -> AsyncIterator[str]:
    """The items of an iterator that blocks, which runs in a thread of its own."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
    end = object()

    def work() -> None:
        last: Any = end
        try:
            for item in make():
                loop.call_soon_threadsafe(queue.put_nowait, item)
        except HarnessError as error:
            last = error
        finally:
            loop.call_soon_threadsafe(queue.put_nowait, last)

    working = background_tasks.create(threads.io_bound(work))
    while (item := await queue.get()) is not end:
        if isinstance(item, HarnessError):
            raise item
        yield item
    await working
