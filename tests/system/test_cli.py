"""The command line: help that teaches, errors as one sentence, and what it shows of a live server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from fornix.cli import COMMANDS, main
from fornix.common.config import RunConfig
from fornix.common.errors import AddressError
from fornix.common.settings import dump_run_config
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, TableSpec
from fornix.replay.client import Client
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.flusher import ThreadFlusher
from fornix.replay.durable.folder import Folder
from fornix.replay.local import LocalTransport
from fornix.replay.server import ReplayServer
from fornix.replay.service import ReplayService
from fornix.roles import changed_addresses, environment_of, roles_of
from fornix.runs import create_run_dir
from fornix.sockets import DEFAULTS, usable_addresses

from .programs import a_server

SIGNATURE = Signature(frame=ArraySpec.of((3,), np.uint8), action=ArraySpec.of((), np.int32, 4), n_frames=2)


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that another program uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield f"tcp://127.0.0.1:{one.getsockname()[1]}"


@pytest.fixture
def server(serve: Callable[..., AbstractContextManager[ReplayServer]], ipc_address: str) -> Iterator[str]:
    """The address of a replay server with one table and one process that reports."""
    with serve(ipc_address, ReplayService(time.monotonic, seed=0, version="1.2")) as one:
        with Client.connect(one.address) as client:
            client.create_table("hunt", TableSpec(signature=SIGNATURE, capacity_steps=100))
            client.open_writer("hunt", "actor-0", lanes=3)
            client.report("learner-0", "trains", {"gradient_steps": 7.0}).result()
        yield one.address


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one sentence that a command line is refused with."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fornix: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: fornix {command}" in text
    assert f"  fornix {command} " in text.split("examples:")[1]
    if command in ("run", "replay", "actor", "learner"):
        assert "--learner.batch_size" in text
        assert "Transitions in a batch." in text
        assert "FORNIX_LEARNER__BATCH_SIZE" in text


def test_the_command_alone_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert main(["--version"]) == 0


def test_server_commands_import_no_torch_and_start_fast() -> None:
    code = (
        "import sys\n"
        "from fornix.cli import main\n"
        "for command in ('replay', 'inspect', 'run', 'actor', 'learner', 'evaluate', 'watch'):\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit: pass\n"
        "assert main(['inspect', 'nowhere']) == 2\n"
        "heavy = {'torch', 'safetensors', 'gymnasium', 'pettingzoo', 'matplotlib', 'PIL'}\n"
        "found = heavy & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspec"], ["'inspec'", "did you mean 'inspect'"]),
        (["run", "none.yaml"], ["none.yaml", "No such file"]),
        (["run", "--learner.batch_siz", "3"], ["did you mean '--learner.batch_size'"]),
        (["run", "--mode", "fast"], ["--mode", "'fast'"]),
        (["run", "--resume", "nowhere"], ["nowhere is no folder of a run"]),
        (["replay", "--address", "tcp://127.0.0.1:99999"], ["port below 65536"]),
        (["replay", "--address", "tcp://127.0.0.1:http"], ["is no address"]),
        (["replay", "--memory-gb", "-1"], ["--memory-gb", "above 0"]),
        (["replay", "--seed", "many"], ["--seed = 'many'"]),
        (["actor", "none.yaml"], ["--index"]),
        (["learner", "none.yaml"], ["--run"]),
        (["evaluate", "nowhere"], ["nowhere is no folder of a run"]),
        (["evaluate", "nowhere", "--episodes", "0"], ["--episodes 0"]),
        (["watch", "nowhere"], ["nowhere is no folder of a run"]),
        (["inspect", "localhost"], ["'localhost' is no address"]),
        (["inspect", "tcp://127.0.0.1:1", "--watch", "--json", "-"], ["give one of them"]),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, *arguments)
    for word in words:
        assert word in sentence


def test_an_index_beyond_the_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("actor: {processes: 2}\n")
    assert "actor.processes is 2" in refused(capsys, "actor", str(file), "--index", "2")
    learner = ("learner", str(file), "--run", str(tmp_path), "--index", "1")
    assert "learner.processes is 1" in refused(capsys, *learner)


def test_a_port_in_use_is_one_sentence(
    taken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, "replay", "--address", taken)
    assert f"can't serve at {taken}: Address already in use" in sentence
    sentence = refused(capsys, "run", "--runs", str(tmp_path), "--replay.address", taken)
    assert f"can't serve at {taken}: it is taken by another program; stop" in sentence
    assert not list(tmp_path.iterdir())


def test_no_server_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no replay server answered at ipc:///nowhere" in refused(capsys, "inspect", "ipc:///nowhere")


def test_inspect_shows_a_live_server(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", server]) == 0
    text = capsys.readouterr().out
    for word in (
        server,
        "table hunt",
        "0 of 100 steps",
        "actor-0",
        "learner-0",
        "trains",
        "gradient_steps 7",
    ):
        assert word in text


def test_inspect_as_json(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", server, "--json", "-"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["address"] == server
    assert values["server"]["version"] == "1.2"
    assert values["tables"]["hunt"]["capacity_steps"] == 100
    assert values["tables"]["hunt"]["writers"]["actor-0"]["lanes"] == 3
    assert values["reports"]["learner-0"]["metrics"] == {"gradient_steps": 7.0}
    file = tmp_path / "info.json"
    assert main(["inspect", server, "--json", str(file)]) == 0
    assert json.loads(file.read_text())["address"] == server
    capsys.readouterr()
    assert main(["inspect", server, "--json", str(tmp_path)]) == 2


@pytest.mark.system
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_server_says_where_it_answers_and_ends_by_signal(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "fornix", "replay", "--address", "tcp://127.0.0.1:*"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("replay server answers at tcp://127.0.0.1:")
        with Client.connect(said.split()[-1]) as client:
            assert client.hello().tables == {}
        process.send_signal(number)
        _, log = process.communicate(timeout=5)
    assert process.returncode == code
    assert "Traceback" not in log


@pytest.mark.system
@pytest.mark.timeout(60)
@pytest.mark.parametrize("flag", ["--data", "--replay.data"])
def test_the_server_says_where_it_keeps_its_rows(flag: str, ipc_address: str, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    for tables in ([], ["hunt"]):
        with a_server(ipc_address, flag, folder, stderr=subprocess.PIPE) as process:
            assert any(f"keeps its rows in {folder}" in line for line in process.stderr)
            with Client.connect(ipc_address) as client:
                assert list(client.hello().tables) == tables
                client.create_table("hunt", TableSpec(signature=SIGNATURE, capacity_steps=100))


def test_ctrl_c_ends_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("fornix.cli._dispatch", interrupt)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == ""


def test_a_default_address_that_is_taken_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    monkeypatch.setattr("fornix.sockets.DEFAULTS", (*DEFAULTS, taken))
    config = with_addresses(taken, "tcp://127.0.0.1:*")
    said: list[str] = []
    used = usable_addresses(config, tmp_path, said.append)
    assert used.replay.address == f"ipc://{tmp_path}/replay"
    assert used.weights.addresses[0].rpartition(":")[2].isdigit()
    assert said == [
        f"{taken}: it is taken by another program; this run uses ipc://{tmp_path}/replay instead"
    ]
    flags = changed_addresses(config, used)
    assert flags[:2] == ("--replay.address", f"ipc://{tmp_path}/replay")
    assert changed_addresses(config, config) == ()


def test_two_alike_addresses_and_one_elsewhere_are_refused(tmp_path: Path, server: str) -> None:
    alike = f"ipc://{tmp_path}/one"
    for replay, weights in ((alike, alike), ("tcp://192.0.2.1:5555", alike), (server, alike)):
        with pytest.raises(AddressError, match="can't serve at"):
            usable_addresses(with_addresses(replay, weights), tmp_path, print)


def with_addresses(replay: str, weights: str) -> RunConfig:
    return RunConfig.model_validate({"replay": {"address": replay}, "weights": {"addresses": [weights]}})


def test_roles_are_commands_that_a_person_could_type(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    roles = roles_of(file, tmp_path, RunConfig(), resume=False, changes=("--seed", "1"))
    assert [role.name for role in roles] == ["replay", "learner-0", "actor-0", "actor-1"]
    learner = roles[1]
    assert learner.command[1:5] == ("-m", "fornix", "learner", str(file))
    assert learner.command[-2:] == ("--seed", "1")
    assert learner.restart_command == (*learner.command, "--resume")
    assert learner.finishes
    assert "FORNIX_SEED" not in environment_of({"FORNIX_SEED": "3", "PATH": os.environ["PATH"]})


@pytest.mark.parametrize(
    ("named", "keep", "folder"),
    [(None, True, "RUN/replay"), ("/rows", True, "/rows"), (None, False, "null"), ("/rows", False, "null")],
)
def test_the_server_of_a_run_keeps_its_rows_in_the_runs_folder(
    named: str | None, keep: bool, folder: str
) -> None:
    config = RunConfig.model_validate({"replay": {"data": named}})
    roles = roles_of(Path("config.yaml"), Path("RUN"), config, resume=False, changes=(), keep=keep)
    assert roles[0].command[-2:] == ("--replay.data", folder)
    assert not any("--replay.data" in role.command for role in roles[1:])


def test_a_resumed_run_can_not_change_the_tables_that_it_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump_run_config(RunConfig(), tmp_path / "config.yaml")
    before = (tmp_path / "config.yaml").read_text()
    folder = Folder(FolderDisk(tmp_path / "replay"), ThreadFlusher(), time.monotonic)
    service = ReplayService(time.monotonic, folder=folder)
    frame, action = ArraySpec.of((4,), "|u1"), ArraySpec.of((), "<i4")
    spec = TableSpec(
        signature=Signature(frame=frame, action=action, n_frames=5),
        capacity_steps=200_000,
        limiter=LimiterSpec(min_size=2_000, samples_per_insert=6.0, error_buffer_inserts=2_000.0),
    )
    assert Client(LocalTransport(service)).create_table("shared", spec)
    service.close()
    sentence = refused(capsys, "run", "--resume", str(tmp_path), "--replay.capacity_steps", "300000")
    for words in ("capacity_steps = 300000", str(tmp_path / "replay"), "200000", "--no-data"):
        assert words in sentence
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    names = [create_run_dir(tmp_path / "runs", "hunt").name for _ in range(3)]
    assert names == ["hunt", "hunt-2", "hunt-3"]
