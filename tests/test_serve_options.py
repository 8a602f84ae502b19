"""serve/options.py: options that survive the way through the environment."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from serve.options import OptionError, ServeOptions, from_properties, to_environment


@given(st.integers(1, 64), st.integers(1, 100000), st.sampled_from(["bf16", "fp16", "fp32"]), st.integers(1, 512))
def test_options_survive_djls_environment(tp: int, positions: int, dtype: str, batch: int) -> None:
    options = ServeOptions(tp, positions, dtype, batch)
    # DJL strips OPTION_ and lower-cases.
    init = {k.removeprefix("OPTION_").lower(): v for k, v in to_environment(options).items()}
    assert from_properties({**init, "device_id": "-1", "handler": "handle"}) == options
    assert init["tensor_parallel_degree"] == str(tp)


@pytest.mark.parametrize("properties", [{"n_positions": "many"}, {"n_positions": "0"}, {"dtype": "int4"}])
def test_wrong_options_name_themselves(properties: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(properties))):
        from_properties(properties)
