"""Run files and plans: what is accepted, how every problem is told, and that the plan is what will be sent."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from harness.errors import HarnessError, InvalidInput
from harness.spec import checks, plan, runfile, service_model, stacks
from harness.spec.profile import LOCAL
from harness.spec.runfile import RunFile
from tests import run_data

READY = sorted((Path(__file__).parent.parent / "harness" / "runs").glob("*.toml"))
SARCASM = next(p for p in READY if p.stem == "smollm2-sarcasm")


def made(path: Path, run_id: str = "r-1") -> plan.Plan:
    stack = stacks.get(stacks.DEFAULT)
    return plan.make(checks.load(path, stack), stack, LOCAL, run_id)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def problems_of(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InvalidInput) as error:
        made(written(tmp_path, text))
    return [" | ".join(p.lines()) for p in error.value.problems]


@pytest.mark.parametrize("path", READY, ids=lambda p: p.stem)
def test_every_ready_made_run_file_can_be_planned(path: Path) -> None:
    assert made(path).create_training_job["TrainingJobName"] == "r-1"
    assert runfile.find(Path(path.stem)) == path


def test_the_labs_settings_reach_the_request() -> None:
    job = made(next(p for p in READY if p.stem == "tinyllama-imdb")).create_training_job
    assert (
        job["HyperParameters"]
        | {
            "tensor_parallel_size": "2",
            "bf16": "true",
            "max_steps": "100",
            "block_size": "150",
            "gradient_accumulation_steps": "8",
            "dataset_name": "5cp/imdb_review_prompts",
        }
        == job["HyperParameters"]
    )
    assert job["ResourceConfig"]["InstanceType"] == "ml.trn1.2xlarge"
    assert "InputDataConfig" not in job


def test_planning_is_pure() -> None:
    assert made(SARCASM) == made(SARCASM)
    assert plan.from_json(made(SARCASM).to_json()) == made(SARCASM)


def test_base_and_tuned_differ_in_names_and_model_data_only() -> None:
    p = made(SARCASM)
    assert p.base is not None
    base, tuned = p.base.create_model, p.tuned.create_model
    assert base["PrimaryContainer"]["Environment"] == tuned["PrimaryContainer"]["Environment"]
    # DJL Serving's own limit of a start, 1200 s in the image, would end one that the run file allows.
    assert tuned["PrimaryContainer"]["Environment"]["OPTION_MODEL_LOADING_TIMEOUT"] == "1800"
    assert base["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]["S3Uri"].endswith("/")
    assert tuned["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]["S3Uri"] == {"placeholder": "artifact_uri"}


def test_a_placeholder_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError, match="train_image"):
        plan.resolve(made(SARCASM).create_training_job, {})


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    told = problems_of(
        tmp_path,
        """
name = "x"
[model]
id = "smollm2-135m-instruc"
[data]
id = "sarcasm"
[train]
learnin_rate = 1e-4
bf16 = 3
output_dir = "/x"
[serve]
n_position = 5
[compute]
train_instance = "ml.trn1.xlarge"
""",
    )
    text = "\n".join(told)
    for part in (
        'train.learnin_rate is not a flag of run_clm |   hint: did you mean "learning_rate"?',
        "train.bf16 = 3: must be true or false",
        "train.output_dir is set by the container",
        'serve.n_position is not an option of the handler |   hint: did you mean "n_positions"?',
        'compute.train_instance = "ml.trn1.xlarge"',
        'model.id = "smollm2-135m-instruc": no such asset |   hint: did you mean "smollm2-135m-instruct"?',
        "data.prompt is missing",
        "data.labels is missing",
    ):
        assert part in text
    assert len(told) == 9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "not TOML"),
        ("", "name is missing"),
        ('name="x"\ncolour=1\n[model]\nid="a/b"\n[data]\nid="a/b"', "colour is not known"),
        ('name="x"\n[model]\nid=1\n[data]\nid="a/b"', "model.id = 1"),
        ('name="x"\n[model]\nid="a/b"\n[data]\nid="a/b"\ntrain="t.jsonl"', "give either id or train"),
        ('name="x"\n[model]\nid="a/b"\n[data]\ntrain="none.jsonl"', "no such file"),
        ('name="x"\n[model]\nid="./nothing"\n[data]\nid="a/b"', "no such directory"),
        (
            'name="x"\n[model]\nid="a/b"\n[data]\nid="a/b"\n[compute]\nvolume_gb=0',
            "greater than or equal to 1",
        ),
        ('name="x"\n[model]\nid="a/b"\n[data]\nid="a/b"\n[compute]\nvolume="1"', 'did you mean "volume_gb"?'),
        (
            'name="x"\n[model]\nid="a/b"\n[data]\nid="a/b"\n[train]\nblock_size=512\n[serve]\nn_positions=256',
            "is more than",
        ),
        ('name="x"\n[model]\nid="a/b"\n[data]\nid="a/b"\n[serve]\ndtype="int4"', "bf16, fp16, fp32"),
    ],
)
def test_wrong_files_get_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in "\n".join(problems_of(tmp_path, text))


KEYS = st.sampled_from(
    ["name", "model", "data", "train", "serve", "compute", "id", "prompt", "labels", "examples", "x"]
)
TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=6), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
def test_any_bytes_are_a_run_file_or_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_bytes(content)
    with pytest.raises(HarnessError):
        made(path)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree_is_validated_without_a_crash(tree: dict) -> None:
    try:
        run = RunFile.model_validate(tree)
    except ValueError:
        return
    stack = stacks.get(stacks.DEFAULT)
    if not checks.all_of(run, stack):
        plan.make(run, stack, LOCAL, "r-1")


def test_validation_against_botocores_model() -> None:
    request = plan.resolve(made(SARCASM).create_training_job, plan.PLACEHOLDERS)
    service_model.validate("sagemaker", "CreateTrainingJob", request)
    wrong = {
        **request,
        "TrainingJobName": "a_b",
        "RoleArn": 5,
        "ResourceConfig": {
            **request["ResourceConfig"],
            "InstanceType": "ml.trn1.3xlarge",
            "VolumeSizeInGb": 1,
        },
        "HyperParameters": {"a": "x" * 2501},
    }
    del wrong["OutputDataConfig"]
    with pytest.raises(InvalidInput) as error:
        service_model.validate("sagemaker", "CreateTrainingJob", wrong)
    text = "\n".join(p.what for p in error.value.problems)
    for part in (
        "TrainingJobName is 'a_b'; it must match",
        "RoleArn must be string",
        "OutputDataConfig is missing",
        'VolumeSizeInGb is not known; did you mean "VolumeSizeInGB"?',
        "HyperParameters.a has 2501 characters; at most 2500 fit",
        "InstanceType is 'ml.trn1.3xlarge'",
    ):
        assert part in text


def test_the_run_files_comments_do_not_lie_about_their_names() -> None:
    for path in READY:
        assert tomllib.loads(path.read_text())["name"] == path.stem


@pytest.mark.parametrize(
    "name", ["token", "hub_token", "push_to_hub_token", "wandb_api_key", "my_secret", "db_password"]
)
def test_a_credential_in_a_run_file_is_refused_without_being_repeated(tmp_path: Path, name: str) -> None:
    text = f'name = "x"\n[model]\nid = "a/b"\n[data]\nid = "a/b"\n[train]\n{name} = "hf_abcdefghijk"\n'
    said = "\n".join(problems_of(tmp_path, text))
    assert f"train.{name} is a credential" in said
    assert "[secrets]" in said
    assert "hf_abcdefghijk" not in said


@pytest.mark.parametrize("name", ["smollm2-mail", "smollm2-weather"])
def test_a_ready_made_file_brings_its_data_and_holds_others_out(name: str) -> None:
    run = checks.load(runfile.find(Path(name)), stacks.get(stacks.DEFAULT), measured=True)
    assert isinstance(run.data.train, str) and run.data.test is not None
    trained, held_out = (
        Path(file).read_text(encoding="utf-8").splitlines() for file in (run.data.train, run.data.test)
    )
    assert not set(trained) & set(held_out)
    made = run_data.files()
    for file, lines in ((run.data.train, trained), (run.data.test, held_out)):
        assert made[Path(file).name].splitlines() == lines, "python -m tests.run_data"
