"""A DQN of one's own on a fornix replay server: CartPole, in one file.

Nothing of fornix but the replay client is used. Start a server in one terminal and this in another:

    fornix replay --address tcp://127.0.0.1:5555
    python examples/cartpole_dqn.py --address tcp://127.0.0.1:5555

It ends when the mean return of the last 50 episodes reaches 400, in well under three minutes.
"""

import argparse
import json
import time
from collections import deque

import gymnasium
import numpy as np
import torch
from torch import nn

from fornix.replay import (
    ArraySpec,
    Client,
    LimiterSpec,
    Signature,
    TableSpec,
    Transition,
    Transitions,
    VectorWriter,
)

COPIES = 8
BATCH_SIZE = 128
N_STEP = 3
DISCOUNT = 0.99
TABLE = "cartpole"
SIGNATURE = Signature(
    frame=ArraySpec.of((4,), np.float32), action=ArraySpec.of((), np.int64, n_values=2), n_frames=1
)


def make_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
    )


class DQN:
    """Double DQN (van Hasselt et al. 2016) with a softly updated target."""

    def __init__(self) -> None:
        self.online, self.target = make_network(), make_network()
        self.target.load_state_dict(self.online.state_dict())
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=1e-3)

    @torch.no_grad()
    def act(self, stacks: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
        greedy = self.online(torch.from_numpy(stacks)).argmax(1).numpy()
        return np.where(rng.random(len(stacks)) < epsilon, rng.integers(2, size=len(stacks)), greedy)

    def train(self, drawn: Transitions) -> None:
        stack, next_stack = torch.from_numpy(drawn.stack), torch.from_numpy(drawn.next_stack)
        with torch.no_grad():
            best = self.online(next_stack).argmax(1, keepdim=True)
            value = self.target(next_stack).gather(1, best).squeeze(1)
            goal = torch.from_numpy(drawn.reward) + torch.from_numpy(drawn.discount) * value
        taken = self.online(stack).gather(1, torch.from_numpy(drawn.action).unsqueeze(1)).squeeze(1)
        loss = nn.functional.smooth_l1_loss(taken, goal)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
                old.lerp_(new, 0.01)


def train(client: Client, goal: float, limit_s: float, seed: int) -> dict[str, float]:
    limiter = LimiterSpec(min_size=500)
    client.create_table(TABLE, TableSpec(signature=SIGNATURE, capacity_steps=50_000, limiter=limiter))
    # NEXT_STEP would do too; with DISABLED, copies whose episodes ended would have to be reset below
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    envs = gymnasium.make_vec(
        "CartPole-v1", COPIES, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )
    rows = VectorWriter(client.open_writer(TABLE, "cartpole-0", lanes=COPIES), mode)
    batches = client.batches(TABLE, BATCH_SIZE, Transition(n_step=N_STEP), discount=DISCOUNT)
    torch.set_num_threads(1)  # the network is too small to share out
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    agent = DQN()
    recent: deque[float] = deque(maxlen=50)
    returns, steps, began = np.zeros(COPIES), 0, time.monotonic()

    frame, _ = envs.reset(seed=seed)
    stacks = rows.reset(frame).result()
    while time.monotonic() - began < limit_s:
        action = agent.act(stacks.stack, max(0.02, 1 - steps / 3000), rng)
        frame, reward, terminated, truncated, info = envs.step(action)
        # the server works on this while the agent trains
        pending = rows.step(action, frame, reward, terminated, truncated, info)
        returns += reward
        ended = terminated | truncated
        recent.extend(returns[ended])
        returns[ended] = 0
        steps += COPIES
        if steps > 1000:
            for _ in range(2):
                agent.train(next(batches))
        stacks = pending.result()
        if len(recent) == 50 and np.mean(recent) >= goal:
            break
    batches.close()
    envs.close()
    mean = float(np.mean(recent)) if recent else 0.0
    return {"mean_return": mean, "steps": steps, "seconds": time.monotonic() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--address", default="tcp://127.0.0.1:5555", help="of the replay server")
    parser.add_argument("--goal", type=float, default=400, help="mean return of the last 50 episodes")
    parser.add_argument("--limit-s", type=float, default=180, help="seconds to give up after")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    given = parser.parse_args()
    with Client.connect(given.address, name="cartpole") as client:
        result = train(client, given.goal, given.limit_s, given.seed)
    if given.json:
        print(json.dumps(result))
    else:
        print(
            f"mean return {result['mean_return']:.0f} after {result['steps']:,} steps "
            f"in {result['seconds']:.0f} s"
        )
    if result["mean_return"] < given.goal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
