"""Published points against the estimator: calibration, the held-out fifth, and the page docs/reference/fit.md.

The procedure is deterministic and uses reports of memory only, never whether a point worked: fixed parts are the
mean (and the least and the most) of the out-of-memory reports; the rings' two coefficients share equally what one
measured total leaves over. Outcomes are for checking, on both parts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.estimate import hardware, host, memory, models
from harness.estimate.hardware import GIB
from harness.estimate.memory import Coefficients, Footprint, Serving, Span, Training

HERE = Path(__file__).parent
WORKED = "worked"
ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Point:
    id: str
    raw: dict[str, Any]

    @property
    def worked(self) -> bool:
        return self.raw["outcome"] == WORKED

    @property
    def reported(self) -> dict[str, float]:
        return self.raw.get("reported_gib", {})


def points() -> list[Point]:
    return [Point(p["id"], p) for p in json.loads((HERE / "points.json").read_text())["points"]]


def left_out() -> list[dict[str, str]]:
    return json.loads((HERE / "points.json").read_text())["left_out"]


def held_out(every: list[Point]) -> set[str]:
    """A fifth of all points, by hash of the id, among those that reported no memory (those calibrate)."""
    free = sorted((p.id for p in every if not p.reported), key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    return set(free[: -(-len(every) // 5)])


def serving_of(raw: dict[str, Any]) -> Serving:
    tokens = raw["token_buckets"]
    tokens = memory.doubling(128, tokens) if isinstance(tokens, int) else tuple(tokens)
    context = raw["context_buckets"]
    context = tuple(b // 2 for b in tokens) if context is None else tuple(context)
    return Serving(raw["tp"], raw["batch"], tokens, context, raw["context_batch"], raw["dtype"])


def footprints(point: Point, c: Coefficients = memory.DEFAULT) -> list[Footprint]:
    """One for each variant of a point (a training point may have several TPs)."""
    raw, model = point.raw, models.find(point.raw["model"])
    assert model is not None, raw["model"]
    arch, instance = model.architecture, hardware.instances()[raw["instance"]]
    if raw["kind"] == "serve":
        return [memory.serving_footprint(arch, serving_of(raw), instance.core_gib, c)]
    if raw["kind"] == "host":
        return [host.serving_host(arch, serving_of(raw), instance.host_gib)]
    out = []
    for tp in raw["tp"]:
        training = Training(
            tp=tp,
            pp=raw["pp"],
            data_parallel=max(instance.cores * raw["hosts"] // (tp * raw["pp"]), 1),
            batch=raw["batch"],
            block=raw["block"],
            precision=raw["precision"],
            zero1=raw["zero1"],
            checkpointing=raw["checkpointing"],
            microbatches=raw["microbatches"],
            lora_rank=raw["lora_rank"],
            lora_targets=ALL_PROJECTIONS if raw["lora_rank"] else (),
        )
        out.append(memory.training_footprint(arch, training, instance.core_gib, c))
    return out


def verdict(point: Point, c: Coefficients = memory.DEFAULT) -> str:
    """The best of the variants: a failure must not be called "fits" under any."""
    order = (memory.FITS, memory.TIGHT, memory.DOES_NOT_FIT)
    return min((f.verdict for f in footprints(point, c)), key=order.index)


def calibrate(chosen: list[Point]) -> Coefficients:
    """The coefficients that `chosen` gives; the defaults where it has no report of a part."""
    c = memory.DEFAULT
    for name in ("scratchpad", "collectives"):
        values = [p.reported[name] * GIB for p in chosen if name in p.reported]
        if values:
            low, mean, high = min(values), sum(values) / len(values), max(values)
            c = replace(c, **{name: Span(low, mean, max(high, 2 * low) if name == "scratchpad" else high)})
    measured = [p for p in chosen if "total" in p.reported]
    if not measured:
        return c
    weights, tokens, rest = 0.0, 0.0, 0.0
    for point in measured:
        arch, serving = models.find(point.raw["model"]).architecture, serving_of(point.raw)
        bare = replace(c, ring_per_weight=0.0, ring_per_token=0.0)
        rest += point.reported["total"] * GIB - footprints(point, bare)[0].total.expected
        weights += memory.serving_weights(arch, serving.tp, serving.dtype) * serving.graphs
        tokens += sum(serving.context_buckets) * serving.context_batch / serving.tp * memory.relative_size(arch)
    return replace(c, ring_per_weight=rest / 2 / weights, ring_per_token=rest / 2 / tokens)


def reports(c: Coefficients = memory.DEFAULT) -> list[tuple[Point, str, float, float]]:
    """(point, what, reported GiB, estimated GiB) wherever memory was reported as a whole or by tensors."""
    out = []
    for point in points():
        if point.raw["kind"] != "serve":
            continue
        terms = {t.name: t.span.expected / GIB for t in footprints(point, c)[0].terms}
        estimated = {
            "tensors": terms["weights"] + terms["KV cache"],
            "total": sum(terms.values()),
            "code": terms["program code"],
        }
        for what, value in point.reported.items():
            if what in estimated:
                out.append((point, what, value, estimated[what]))
    return out


def page() -> str:
    """docs/reference/fit.md."""
    every, chosen = points(), held_out(points())
    lines = [
        "# The estimator against published runs",
        "",
        "Generated by `make generated` from tests/estimate/points.json. GiB of one NeuronCore (or of the host): low,",
        'expected, high. A failure must not be called "fits"; at most one success may be called "does not fit".',
        '"Tight" is the honest answer between the two: such settings were published both as working and as failing.',
        "",
    ]
    for title, part in (
        ("Calibration", [p for p in every if p.id not in chosen]),
        ("Held out (a fifth, chosen by hash)", [p for p in every if p.id in chosen]),
    ):
        wrong = sum(1 for p in part if not p.worked and verdict(p) == memory.FITS)
        refused = sum(1 for p in part if p.worked and verdict(p) == memory.DOES_NOT_FIT)
        lines += [
            f"## {title}: {len(part)} points",
            "",
            f'Failures called "fits": {wrong}. Successes called "does not fit": {refused}.',
            "",
            "| point | model | instance | setting | happened | estimate | low | expected | high |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(p) for p in part]
        lines.append("")
    lines += ["## Where memory was reported", ""]
    lines += ["| point | what | reported GiB | estimated GiB | error |", "|---|---|---|---|---|"]
    for point, what, value, estimate in reports():
        lines.append(
            f"| {point.id} | {what} | {value:.2f} | {estimate:.2f} | {100 * (estimate / value - 1):+.1f} % |"
        )
    lines += [
        "",
        '"total" of llama2-7b-784-measured is what the rings were calibrated on: its error says nothing. Tensors',
        "were never fitted. Code in an out-of-memory report is of the graphs loaded by then, not of all.",
        "",
        "## Leave one out",
        "",
        "Each failure is judged by coefficients calibrated without it.",
        "",
        "| failure | verdict |",
        "|---|---|",
    ]
    for point in every:
        if not point.worked:
            rest = [p for p in every if p.id != point.id and p.id not in chosen]
            lines.append(f"| [{point.id}]({point.raw['url']}) | {verdict(point, calibrate(rest))} |")
    lines += ["", "## Not used", "", "| case | why |", "|---|---|"]
    lines += [f"| [{item['id']}]({item['url']}) | {item['reason']} |" for item in left_out()]
    return "\n".join(lines) + "\n"


def _row(point: Point) -> str:
    raw, total = point.raw, footprints(point)[-1].total
    if raw["kind"] == "train":
        lora = f", LoRA {raw['lora_rank']}" if raw["lora_rank"] else ""
        tp = "/".join(map(str, raw["tp"]))
        setting = f"train, TP {tp} PP {raw['pp']}, {raw['batch']} x {raw['block']}, {raw['precision']}{lora}"
    else:
        setting = f"{raw['kind']}, TP {raw['tp']}, {raw['batch']} x {serving_of(raw).positions}, {raw['dtype']}"
    spans = " | ".join(f"{v / GIB:.1f}" for v in (total.low, total.expected, total.high))
    mark = "*" if raw.get("graphs") == "assumed" else ""
    name = raw["model"].split("/")[1]
    return (
        f"| [{point.id}]({raw['url']}){mark} | {name} | {raw['instance']} | {setting} | {raw['outcome']} | "
        f"{verdict(point)} | {spans} |"
    )
