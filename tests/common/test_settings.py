"""The configuration of a run from file, variables and flags, and what is said of a wrong one."""

import os
from pathlib import Path

import pytest

from fornix.common.config import GymnasiumConfig, RunConfig
from fornix.common.errors import ConfigurationError
from fornix.common.settings import dump_run_config, key_names, read_run_config, variable


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("FORNIX_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def test_without_anything_all_is_default() -> None:
    assert read_run_config(None) == RunConfig()


def test_a_flag_beats_a_variable_beats_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("seed: 1\nlearner: {batch_size: 2, n_step: 2, tau: 0.2}\n")
    monkeypatch.setenv("FORNIX_LEARNER__BATCH_SIZE", "3")
    monkeypatch.setenv("FORNIX_LEARNER__N_STEP", "4")
    config = read_run_config(file, ["--learner.n_step", "5"])
    assert (config.seed, config.learner.tau) == (1, 0.2)
    assert (config.learner.batch_size, config.learner.n_step) == (3, 5)


def test_lists_and_mappings_from_every_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("environment: {treasures: {gem: 1}}\nweights: {addresses: ['tcp://a:1']}\n")
    assert read_run_config(file).weights.addresses == ("tcp://a:1",)
    monkeypatch.setenv("FORNIX_WEIGHTS__ADDRESSES", '["tcp://b:1", "ipc://c"]')
    monkeypatch.setenv("FORNIX_ENVIRONMENT__TREASURES__FOOD", "2")
    config = read_run_config(file)
    assert config.weights.addresses == ("tcp://b:1", "ipc://c")
    assert config.environment.treasures == {"food": 2}  # one value: the kinds of a lower source are gone
    config = read_run_config(file, ["--environment.treasures", "bone=-3"])
    assert config.environment.treasures == {"bone": -3}
    flags = ["--weights.addresses", "tcp://d:1,tcp://d:2"]
    assert read_run_config(file, flags).weights.addresses == ("tcp://d:1", "tcp://d:2")


def test_the_folder_of_the_memory_from_every_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_run_config(None).replay.data is None
    file.write_text("replay: {data: a/b}\n")
    assert read_run_config(file).replay.data == Path("a/b")
    monkeypatch.setenv("FORNIX_REPLAY__DATA", "/c")
    assert read_run_config(file).replay.data == Path("/c")
    assert read_run_config(file, ["--replay.data", "d"]).replay.data == Path("d")
    assert read_run_config(file, ["--replay.data", "null"]).replay.data is None


def test_another_kind_of_environment() -> None:
    config = read_run_config(None, ["--environment.kind", "gymnasium", "--environment.id", "Acrobot-v1"])
    assert config.environment == GymnasiumConfig(id="Acrobot-v1")


def test_what_is_written_reads_back_equal_and_explains_each_key(tmp_path: Path) -> None:
    flags = ["--weights.addresses", "tcp://a:1,tcp://b:2", "--learner.adam_epsilon", "1e-30"]
    flags += ["--replay.data", "rows: 1"]
    config = read_run_config(None, [*flags, "--environment.treasures", "gem=3,true=4,5=3", "--name", "123"])
    path = tmp_path / "config.yaml"
    dump_run_config(config, path)
    assert read_run_config(path) == config
    lines = path.read_text().splitlines()
    for field in ("batch_size", "spawn_prob", "noisy", "sharing"):
        at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{field}:"))
        assert lines[at - 1].strip().startswith("# ")


@pytest.mark.parametrize("name", ["treasurehunt", "treasurehunt_large"])
def test_the_files_that_come_with_fornix_are_valid(name: str) -> None:
    config = read_run_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    assert config.name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "learner: {batch_siz: 3}",
            ["run.yaml", "'learner.batch_siz'", "did you mean 'learner.batch_size'"],
        ),
        ("batch_size: 3", ["'batch_size'", "did you mean 'learner.batch_size'"]),
        ("lerner: {}", ["'lerner'", "did you mean 'learner'"]),
        ("learner: {batch_size: many}", ["run.yaml", "learner.batch_size = 'many'", "valid integer"]),
        ("learner: {batch_size: 0}", ["learner.batch_size = 0", "greater than or equal to 1"]),
        ("learner: {batch_size: true}", ["batch_size = true", "number"]),
        ("learner: {learning_rate: .nan}", ["learner.learning_rate = nan", "finite"]),
        ("learner:", ["learner = None"]),
        ("seed: 1\nlearner:\n  tau: 1\n  tau: 0.5\n", ["run.yaml, line 4", "'tau' is written twice"]),
        ("seed: 1\nlearner: [3\nname: {", ["run.yaml, line 3"]),
        ("\tseed: 1", ["run.yaml, line 1"]),
        ("- 3", ["no mapping"]),
        (
            "environment: {kind: gymnasum}",
            ["environment.kind = 'gymnasum'", "'gymnasium' or 'treasurehunt'"],
        ),
        ("environment: {kind: gymnasium, agents: 3}", ["'environment.agents'", "environment.kind"]),
        ("environment: {agents: 300}", ["300 agents", "64 inner cells"]),
        ("environment: {agents: [3]}", ["environment.agents = [3]"]),
        ("replay: {address: 'tcp://a:99999'}", ["replay.address", "port below 65536"]),
        ("replay: {data: ''}", ["replay.data = ''", "names no folder", "give a path, or null"]),
        ("replay: {data: 3}", ["replay.data = 3", "names no folder"]),
        ("weights: {addresses: []}", ["weights.addresses", "at least 1"]),
        ("learner: {processes: 2}", ["learner.processes 2", "weights.addresses"]),
        ("replay: {min_size: 20, capacity_steps: 10}", ["min_size 20", "capacity_steps 10", "lower"]),
        ("replay: {min_size: 2, capacity_steps: 3}", ["capacity_steps 3", "one transition"]),
    ],
)
def test_a_wrong_file_is_refused_with_one_sentence(file: Path, text: str, words: list[str]) -> None:
    file.write_text(text)
    _refuses(words, file)


def test_two_learners_need_two_policies() -> None:
    flags = ["--learner.processes", "2", "--weights.addresses", "tcp://a:1,tcp://a:2"]
    _refuses(["policy.sharing 'shared'"], None, flags)
    assert read_run_config(None, [*flags, "--policy.sharing", "per_agent"]).policies == 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learner.batch_siz", "3"], ["'--learner.batch_siz'", "did you mean '--learner.batch_size'"]),
        (["--learner.batch_size", "0"], ["--learner.batch_size = '0'", "greater than or equal to 1"]),
        (["--learner.batch_size"], ["--learner.batch_size", "expected one argument"]),
        (["--policy.sharing", "share"], ["--policy.sharing = 'share'", "'shared' or 'per_agent'"]),
        (["--weights.addresses", "[x"], ["weights.addresses"]),
        (["stray"], ["'stray'"]),
    ],
)
def test_a_wrong_flag_is_refused_with_one_sentence(flags: list[str], words: list[str]) -> None:
    _refuses(words, None, flags)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "LEARNER__BATCH_SIZ",
            "3",
            ["FORNIX_LEARNER__BATCH_SIZ", "did you mean 'FORNIX_LEARNER__BATCH_SIZE'"],
        ),
        ("LEARNER__BATCH_SIZE", "x", ["environment variable FORNIX_LEARNER__BATCH_SIZE", "'x'", "integer"]),
        ("WEIGHTS__ADDRESSES", "tcp://a:1", ["FORNIX_WEIGHTS__ADDRESSES", "JSON"]),
        ("LEARNER", '{"batch_siz": 1}', ["did you mean 'learner.batch_size'"]),
    ],
)
def test_a_wrong_variable_is_refused_with_one_sentence(
    key: str, value: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FORNIX_{key}", value)
    _refuses(words, None)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path, file: Path) -> None:
    _refuses(["No such file"], tmp_path / "none.yaml")
    _refuses(["Is a directory"], tmp_path)
    file.write_bytes(b"seed: \xff")
    _refuses(["UTF-8"], file)


def test_every_key_has_a_variable_and_documentation() -> None:
    names = key_names()
    assert names["learner.batch_size"]
    assert not names["learner"]
    assert not names["weights.addresses"]
    assert variable("learner.batch_size") == "FORNIX_LEARNER__BATCH_SIZE"
    for section in RunConfig.model_fields.values():
        for field in getattr(section.annotation, "model_fields", {}).values():
            assert field.description


def _refuses(words: list[str], file: Path | None, flags: list[str] | None = None) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_run_config(file, flags or [])
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence, sentence
