"""What training is worth when something is killed every few seconds.

For each seed two runs of the treasure hunt as `fornix run` makes them: one undisturbed, and one in which
every `--every` seconds one of its processes is sent SIGKILL: the replay server, the learner and the
actors in turn. Their greedy scores at the end are printed side by side.

    python benchmarks/bench_kills.py --seeds 0 1 --every 10
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from observed_run import read_run

from fornix.commands.shared import write_json

_ROLES = ("replay", "learner", "actor")
_LONGEST_S = 1200.0


def run(file: Path, seed: int, every_s: float | None, flags: list[str]) -> dict[str, Any]:
    """Return how one run ended, with a kill every so often if that is not None."""
    with tempfile.TemporaryDirectory(prefix="fornix-") as folder:
        addresses = [f"ipc://{folder}/{name}" for name in ("replay", "weights")]
        command = [sys.executable, "-m", "fornix", "run", str(file), "--runs", folder, "--name", "run"]
        command += ["--seed", str(seed), "--replay.address", addresses[0]]
        command += ["--weights.addresses", json.dumps(addresses[1:]), *flags]
        with open(f"{folder}/output", "w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
            kills = watch(process, every_s)
        if process.returncode:
            raise SystemExit(f"fornix run failed:\n{Path(folder, 'output').read_text()[-3000:]}")
        summary = read_run(Path(folder, "run")).summary
    score = summary["score_after_training"]
    return {
        "seed": seed,
        "kills": kills,
        "score": round(score["mean"], 1),
        "confidence_interval_95": [round(bound, 1) for bound in score["confidence_interval_95"]],
        "gradient_steps": summary["gradient_steps"],
        "training_seconds": round(summary["training_seconds"], 1),
    }


def watch(process: "subprocess.Popen[bytes]", every_s: float | None) -> dict[str, int]:
    """Wait for the end of a run; kill one of its processes every so often."""
    kills = dict.fromkeys(_ROLES, 0)
    if every_s is None:
        process.wait(_LONGEST_S)
        return kills
    began, turn = time.monotonic(), 0
    while process.poll() is None:
        turn += 1
        due = began + turn * every_s
        while process.poll() is None and time.monotonic() < due:
            time.sleep(0.1)
        if process.poll() is None:
            role = _ROLES[turn % len(_ROLES)]
            kills[role] += kill(process.pid, role, turn)
    return kills


def kill(parent: int, role: str, at: int) -> bool:
    """Kill one of a run's processes of a role, in turn; return whether there was one."""
    found = [child for child in psutil.Process(parent).children() if role in child.cmdline()]
    if found:
        found[at % len(found)].kill()
    return bool(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two kills")
    parser.add_argument("--config", type=Path, default=Path("configs/treasurehunt.yaml"))
    parser.add_argument("--json", help="write the figures to a file, or - for standard output")
    parser.add_argument("flags", nargs="*", help="after --: flags for fornix run")
    options = parser.parse_args()
    out = sys.stderr if options.json == "-" else sys.stdout
    figures = []
    for seed in options.seeds:
        for name, every_s in (("undisturbed", None), ("killed", options.every)):
            ended = run(options.config, seed, every_s, options.flags)
            figures.append({"run": name, **ended})
            print(name, json.dumps(ended), file=out, flush=True)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
