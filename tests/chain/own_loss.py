"""Our own loss against model.forward's, in value and gradients, for every family of train/losses.py, and others.

    .venv-train/bin/python -m tests.chain.own_loss [FAMILY ...]

Random weights of a size that makes every term count, and configurations that scale or cap logits where they can.
For families that are not proven the trainer has to give model.forward's loss, and our own has to differ: otherwise
the family belongs into the list.
"""

import sys
import tempfile
import warnings

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from train import attention
from train.devices.cpu import AnswerLossTrainer
from train.losses import IGNORED, PROVEN, STEP_TOKENS, is_proven, summed_loss

COMMON = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
COMMON |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT2 = {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
SIZES = {
    "gpt2": GPT2,
    "gptj": {**GPT2, "rotary_dim": 4},
    "bloom": {"vocab_size": 101, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32},
    **{name: {**COMMON, "head_dim": 8} for name in ("gemma", "gemma2", "glm")},
}
SCALES = {"logits_scaling": 3.0, "logit_scale": 0.5, "final_logit_softcapping": 5.0, "output_router_logits": True}
OTHERS = ("gemma2", "granite", "cohere", "cohere2", "granitemoe", "mixtral", "qwen2_moe", "olmoe")


def model_of(family, smoothing=0.0):
    config = AutoConfig.for_model(
        family, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SIZES.get(family, COMMON), **given(family)
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def given(family):
    plain = AutoConfig.for_model(family)
    return {name: value for name, value in SCALES.items() if hasattr(plain, name)}


def batch_of():
    torch.manual_seed(1)
    ids = torch.randint(3, 101, (3, 12))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[0, :4] = IGNORED
    for row, width in ((1, 9), (2, 10)):  # two columns are padding in all rows but the first
        ids[row, width:], labels[row, width:], mask[row, width:] = 0, IGNORED, 0
    wide = [torch.nn.functional.pad(t, (0, 3), value=v) for t, v in ((ids, 0), (labels, IGNORED), (mask, 0))]
    return dict(zip(("input_ids", "labels", "attention_mask"), wide, strict=True))


def gradients(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


def gap(one, other, model):
    loss = float((one - other).abs())
    pairs = zip(gradients(one, model), gradients(other, model), strict=True)
    return max([loss, *(float((a - b).abs().max()) for a, b in pairs)])


def smoothed(model, batch, smoothing):
    """As transformers' LabelSmoother has it, from its definition."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    wanted = labels != IGNORED
    return torch.nn.functional.cross_entropy(logits[wanted], labels[wanted], label_smoothing=smoothing)


def ours(model, batch, count, smoothing=0.0):
    """Our loss on our attention, in blocks of four tokens."""
    attention.BLOCK = 4
    attention.install()
    try:
        return summed_loss(model, batch, count, smoothing)
    finally:
        attention.ALL_ATTENTION_FUNCTIONS["sdpa"] = attention._upstream


def check_attention(family, batch, count):
    """The families whose attention we replace: it is really called, with a mask and without, kept and made again."""
    called, apply = [], attention.BlockAttention.apply
    attention.BlockAttention.apply = lambda *a: called.append(a[3] is None) or apply(*a)
    full = {k: v[:1, :12] for k, v in batch.items()}
    for kept in (1 << 30, 0):
        attention.KEPT_BYTES = kept
        for some, total in ((batch, count), (full, (full["labels"][:, 1:] != IGNORED).sum())):
            model = model_of(family)
            found = gap(ours(model, some, total), model(**some).loss, model)
            assert found < 2e-5, (family, kept, found)
    attention.BlockAttention.apply = apply
    assert called.count(True) == called.count(False) == 4, (family, called)
    print(f"{family}: own attention equals sdpa's")


def main(families):
    warnings.simplefilter("ignore")
    batch = batch_of()
    count = (batch["labels"][:, 1:] != IGNORED).sum()
    for family in families or sorted(PROVEN):
        model = model_of(family)
        assert is_proven(model), family
        plain = gap(ours(model, batch, count), model(**batch).loss, model)
        soft = gap(ours(model, batch, count, 0.3), smoothed(model, batch, 0.3), model)
        assert plain < 2e-5 and soft < 2e-5, (family, plain, soft)
        print(f"{family}: own loss and gradients equal model.forward's within {plain:.0e}, smoothed {soft:.0e}")
        if family in attention.PROVEN:
            check_attention(family, batch, count)
    for family in [] if families else OTHERS:
        model = model_of(family)
        assert not is_proven(model)
        difference = gap(summed_loss(model, batch, count), model(**batch).loss, model)
        assert difference > 1e-3, f"{family} could be proven: {difference}"
        arguments = TrainingArguments(tempfile.mkdtemp(), use_cpu=True, report_to="none")
        trainer = AnswerLossTrainer(model=model, args=arguments)
        taken = trainer.compute_loss(model, {**batch, STEP_TOKENS: torch.full((3,), int(count))})
        theirs = gap(taken, model(**batch).loss, model)
        assert theirs < 1e-6, (family, theirs)
        print(f"{family}: takes model.forward's loss; own would differ by {difference:.0e}")


if __name__ == "__main__":
    main(sys.argv[1:])
