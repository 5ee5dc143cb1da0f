"""What a run leaves: its scores, summary.json, curve.png and episode.gif."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fornix import summary
from fornix.commands import evaluate
from fornix.common.config import GymnasiumConfig, RunConfig, TreasureHuntConfig
from fornix.common.errors import ConfigurationError, FornixError
from fornix.common.settings import dump_run_config
from fornix.pictures import draw_curve, read_metrics, write_animation
from fornix.scores import Score, nearest_treasure_score, random_score, untrained

CONFIG = RunConfig(environment=TreasureHuntConfig(max_turns=8))


@dataclass
class Untrained:
    """A checkpoint of which only what is asked for is there."""

    step: int = 30
    seconds: float = 12.5
    acting_weights: Any = None


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that has just ended."""
    folder = tmp_path / "hunt"
    folder.mkdir()
    dump_run_config(CONFIG, folder / "config.yaml")
    records = [{"time_s": t, "agent_steps": 100.0 * t, "score": 200.0 + t} for t in range(10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(summary, "EPISODES", 4)
    for module in ("fornix.summary", "fornix.scores"):
        monkeypatch.setattr(f"{module}.newest", lambda config, run_dir: {"shared": Untrained()})
    return folder


def test_a_run_is_summed_up(run_dir: Path) -> None:
    found = summary.sum_up(CONFIG, run_dir, print)
    values = json.loads((run_dir / "summary.json").read_text())
    assert values == found.to_json()
    assert values["score_after_training"] == values["score_before_training"]
    assert values["score_after_training"]["episodes"] == 4
    assert values["score_nearest_treasure"]["mean"] > values["score_random"]["mean"]
    assert (values["gradient_steps"], values["agent_steps"]) == (30, 900)
    assert values["training_seconds"] == 12.5
    for name in ("configuration", "metrics", "curve", "episode", "summary"):
        assert Path(values["files"][name]).is_file()
    assert "logs" not in values["files"]
    with Image.open(run_dir / "episode.gif") as animation:
        assert animation.n_frames == 8  # type: ignore[attr-defined]
    with Image.open(run_dir / "curve.png") as curve:
        assert curve.width > 1000


def test_people_read_the_summary(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=400).print(summary.panel(summary.sum_up(CONFIG, run_dir, print)))
    text = capsys.readouterr().out
    for word in ("random play", "before training", "after training", "0:12 of training", "curve.png"):
        assert word in text


def test_what_cannot_be_drawn_is_said(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise FornixError("no pictures here")

    monkeypatch.setattr(summary, "animate", refuse)
    said: list[str] = []
    found = summary.sum_up(CONFIG, run_dir, said.append)
    assert said == ["there is no animation: no pictures here"]
    assert "episode" not in found.files


def test_evaluate_prints_the_greedy_score_beside_random_play(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(run_dir), "--episodes", "3"]) == 0
    assert "greedy" in capsys.readouterr().out
    assert evaluate.main([str(run_dir), "--episodes", "3", "--json", "-"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["gradient_steps"] == {"shared": 30}
    assert values["score_greedy"].keys() == {"mean", "confidence_interval_95", "episodes"}
    assert values["score_random"]["episodes"] == 3


def test_a_score_has_its_confidence_interval() -> None:
    score = Score.of(np.array([1.0, 2.0, 3.0, 4.0]))
    assert score.mean == 2.5
    assert score.half_width == pytest.approx(1.96 * 1.29099 / 2, rel=1e-4)
    assert str(score) == "2.5 ± 1.3"
    alone = Score.of(np.array([7.0]))
    assert (str(alone), alone.to_json()["confidence_interval_95"]) == ("7.0", None)


def test_random_and_rule_of_thumb_scores() -> None:
    config = RunConfig()
    assert random_score(config, 100, 0).mean == pytest.approx(255, abs=25)
    nearest = nearest_treasure_score(config, 100, 0)
    assert nearest is not None
    assert nearest.mean == pytest.approx(534, abs=30)
    assert nearest_treasure_score(RunConfig(environment=GymnasiumConfig()), 1, 0) is None
    assert untrained(config) == {"shared": None}


def test_metrics_go_on_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    lines = [
        {"time_s": 1, "agent_steps": 100},
        {"time_s": 2, "agent_steps": 200},
        {"time_s": 3, "agent_steps": 300},
        {"time_s": 2.5, "agent_steps": 10},  # from its checkpoint, with a new server
        {"time_s": 3.5, "agent_steps": 60},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"time_s": 4, "agen')
    found = read_metrics(path)
    assert [record["time_s"] for record in found] == [1, 2, 2.5, 3.5]
    assert [record["agent_steps"] for record in found] == [100, 200, 210, 260]


def test_a_curve_without_any_record(tmp_path: Path) -> None:
    draw_curve([], Score(1.0, None, 1), {}, "nothing", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_an_animation_is_enlarged_and_an_unwritable_one_refused(tmp_path: Path) -> None:
    pictures = [np.full((20, 10, 3), 40 * i, np.uint8) for i in range(4)]
    write_animation(pictures, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.size == (200, 400)
    with pytest.raises(ConfigurationError, match="can't write"):
        write_animation(pictures, tmp_path / "none" / "a.gif")
