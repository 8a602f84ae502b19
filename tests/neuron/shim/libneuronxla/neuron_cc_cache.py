"""The compile cache's classes as far as optimum-neuron uses them while training: a directory with text files."""

from __future__ import annotations

import os
from pathlib import Path


class CacheUrl:
    def __init__(self, url: str, url_type: str = "fs") -> None:
        self.url, self.url_type = url, url_type

    @staticmethod
    def get_cache_url(cache_dir: str | None = None) -> CacheUrl:
        url = os.environ.get("NEURON_COMPILE_CACHE_URL") or cache_dir or "/var/tmp/neuron-compile-cache"
        return CacheUrl(url, "s3" if url.startswith("s3://") else "fs")

    def is_s3(self) -> bool:
        return self.url_type == "s3"


class CompileCache:
    def __init__(self, cache_url: CacheUrl) -> None:
        self.cache_url, self.cache_path = cache_url, cache_url.url


class CompileCacheFs(CompileCache):
    def get_cache_dir_with_cache_key(self, key: str) -> str:
        return f"{self.cache_path}/{key}"

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def upload_string_to_file(self, path: str, data: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(data)


class CompileCacheS3(CompileCache):
    pass


def create_compile_cache(cache_url: CacheUrl) -> CompileCache:
    return CompileCacheS3(cache_url) if cache_url.is_s3() else CompileCacheFs(cache_url)
