"""serve/options.py: options that survive the way through the environment, and variables that would do nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from serve.options import OptionError, ServeOptions, check_environment, from_properties, names, to_environment


@given(
    st.integers(1, 64),
    st.integers(1, 100000),
    st.sampled_from(["bf16", "fp16", "fp32"]),
    st.integers(1, 512),
    st.integers(1, 59),
    st.integers(1, 479),
    st.booleans(),
)
def test_options_survive_djls_environment(
    tp: int, positions: int, dtype: str, batch: int, timeout: int, stream: int, tgi: bool
) -> None:
    options = ServeOptions(tp, positions, dtype, batch, timeout, stream, tgi_compat=tgi)
    environment = to_environment(options)
    check_environment(environment)
    # DJL strips OPTION_ and lower-cases.
    init = {k.removeprefix("OPTION_").lower(): v for k, v in environment.items()}
    assert from_properties({**init, "device_id": "-1", "handler": "handle"}) == options
    assert init["tensor_parallel_degree"] == str(tp)


@pytest.mark.parametrize(
    "properties",
    [
        {"n_positions": "many"},
        {"n_positions": "0"},
        {"dtype": "int4"},
        {"tgi_compat": "yes"},
        {"answer_timeout": "60"},
        {"stream_timeout": "480"},
    ],
)
def test_wrong_options_name_themselves(properties: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(properties))):
        from_properties(properties)


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(OptionError) as error:
        from_properties({"n_positions": "many", "max_batch_size": "0", "dtype": "int4", "tgi_compat": "1"})
    assert all(name in str(error.value) for name in ("n_positions", "max_batch_size", "dtype", "tgi_compat"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OPTION_N_POSITION": "128"}, "OPTION_N_POSITION is not known; did you mean OPTION_N_POSITIONS?"),
        ({"OPTION_TP_DEGREE": "2"}, "did you mean OPTION_TENSOR_PARALLEL_DEGREE?"),
        ({"OPTION_MY_OWN": "x"}, "OPTION_MY_OWN is not known"),
        ({"OPTION_QUANTIZE": "static_int8"}, "OPTION_QUANTIZE=static_int8 has no effect here: weights are served"),
        ({"OPTION_TRUST_REMOTE_CODE": "true"}, "code that comes with a model is not run"),
        ({"OPTION_MAX_MODEL_LEN": "4096"}, "use OPTION_N_POSITIONS"),
        ({"OPTION_camelCase": "y"}, "OPTION_camelCase is not known"),
    ],
)
def test_a_variable_that_would_do_nothing_is_refused_with_what_helps(variables: dict, said: str) -> None:
    with pytest.raises(OptionError) as error:
        check_environment({**to_environment(ServeOptions()), "PATH": "/bin", **variables})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_all_such_variables_are_told_at_once() -> None:
    with pytest.raises(OptionError) as error:
        check_environment({"OPTION_A": "1", "OPTION_UNROLL": "2", "OPTION_QUANTIZE": "3"})
    assert all(name in str(error.value) for name in ("OPTION_A", "OPTION_UNROLL", "OPTION_QUANTIZE"))


def test_djls_own_variables_and_values_that_ask_for_nothing_pass() -> None:
    check_environment(
        {
            "OPTION_ENGINE": "Python",
            "OPTION_entryPoint": "/opt/program/serve/model.py",
            "OPTION_ROLLING_BATCH": "custom",
            "OPTION_MAX_ROLLING_BATCH_SIZE": "32",
            "OPTION_MODEL_LOADING_TIMEOUT": "1800",
            "OPTION_SERVE_ENGINE": "cpu",
            "OPTION_TRUST_REMOTE_CODE": "False",
            "OPTION_BATCH_SIZE": "1",
            "OPTION_QUANTIZE": "",  # DJL drops empty ones
            "SERVING_MAX_WORKERS": "1",
        }
    )


def test_the_entrypoints_own_variables_pass(tmp_path: object) -> None:
    from pathlib import Path

    from containers.contract import DEVICE_ENV
    from containers.entrypoint import serving_environment

    check_environment(serving_environment({DEVICE_ENV: "cpu"}, Path(str(tmp_path))))


def test_every_option_is_written_out() -> None:
    assert len(to_environment(ServeOptions())) == len(names())
