"""Rows by real tokenizers of transformers, as JSON: `.venv-train/bin/python -m tests.chain.real_tokenizers`.

A tokenizer as Llama 2 has it (BPE over "▁", BOS by its post-processor, bytes for what is unknown) and one of bytes as
GPT-2 has it, both trained here: no download.
"""

import json
import sys
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from containers.rows import Reading
from train.data import Options, from_files, prepare
from train.packing import IGNORED

CORPUS = ["Is it warm? Yes it is. Is it cold? No.", "[INST] hello [/INST] hi there", "user assistant system"] * 30
# As Llama-2-chat's: each turn of the user begins a new sequence, each answer ends one.
LLAMA_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llama() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # as sentencepiece: no token over a blank
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    tokenizer.pre_tokenizer = None
    bos = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=bos
    )
    tokenizer.enable_truncation(8)  # some are saved like this
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = LLAMA_CHAT
    return reloaded(fast)


def bytes_() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    return reloaded(fast)


def reloaded(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    folder = tempfile.mkdtemp()
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def first(tokenizer: PreTrainedTokenizerFast, row: dict, **how: object) -> dict[str, object]:
    """All rows, one after the other: their tokens, and those that the loss is taken on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(json.dumps(row))
        reading = Reading()
        data = prepare(
            from_files([path], reading, None),
            None,
            tokenizer,
            Options(**{"block_size": 64, **how}),
            [reading, reading],
        )
    ids, wanted = [], []
    for i in range(len(data.train)):
        made = data.train[i]
        ids += made["input_ids"][made["attention_mask"] == 1].tolist()
        wanted += made["labels"][made["labels"] != IGNORED].tolist()
    return {
        "tokens": tokenizer.convert_ids_to_tokens(ids),
        "text": tokenizer.decode(ids),
        "loss": tokenizer.decode(wanted),
        "ends": tokenizer.convert_ids_to_tokens(list(data.ends)),
    }


def main() -> None:
    one, other = llama(), bytes_()
    chat = {"messages": [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Is it cold?"},
        {"role": "assistant", "content": "No."},
    ]}  # fmt: skip
    facts = {
        "llama answer": first(one, {"prompt": "Is it warm?", "completion": " Yes"}),
        "llama joined": first(one, {"prompt": "[INST] hello [/INST]", "completion": "hi there"}),
        "llama emoji": first(one, {"prompt": "Is it 😀?", "completion": " 日本 Yes"}),
        "llama text with bos": first(one, {"text": "<s>[INST] hello [/INST] hi there</s>"}, block_size=5),
        "llama answer with ends": first(one, {"prompt": "<s>Is it warm?", "completion": " Yes</s>\n"}),
        "llama chat": first(one, chat),
        "bytes answer": first(other, {"prompt": "Is it warm? ", "completion": "Yes"}),
        "bytes emoji": first(other, {"prompt": "Is it 😀?", "completion": "😀 Yes"}),
        "bytes text": first(other, {"text": "Is it warm?<|endoftext|>"}, block_size=4),
        "bytes chat": first(other, chat),
        "bytes alpaca": first(other, {"instruction": "Is it", "input": "warm?", "output": "Yes"}),
    }
    # What the serving side sends the model for the same prompt has to be how the sequence begins.
    for name, tokenizer in (("llama", one), ("bytes", other)):
        begun = tokenizer.convert_ids_to_tokens(tokenizer("Is it warm?")["input_ids"])
        facts[f"{name} prompt"] = {"tokens": begun}
    json.dump(facts, sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    main()
