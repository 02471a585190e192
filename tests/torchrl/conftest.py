"""An environment whose every reward is known; a small StochDQN and what updates it."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import MLP
from torchrl.objectives import HardUpdate as HostHardUpdate
from torchrl.objectives import SoftUpdate as HostSoftUpdate

from extensions.optim import clip_grad_norm_
from extensions.torchrl import HardUpdate, SoftUpdate, StochDQNLoss, StochQNetwork, StochQValueActor

AFTER_THE_END = 1000.0  # what every step of a second episode brings


class Scripted(EnvBase):
    """Pays ``rewards[row, t]`` plus the action, until ``lengths[row]``; then begins another episode."""

    def __init__(self, rewards, lengths):
        super().__init__(batch_size=[len(rewards)])
        self.rewards, self.lengths = torch.as_tensor(rewards), torch.as_tensor(lengths)
        self.observation_spec = Composite(observation=Unbounded((len(rewards), 2)), shape=self.batch_size)
        self.action_spec = Bounded(0, 1, (len(rewards), 1))
        self.reward_spec = Unbounded((len(rewards), 1))
        self.done_spec = Composite(
            done=Categorical(2, shape=(len(rewards), 1), dtype=torch.bool), shape=self.batch_size
        )

    def _set_seed(self, seed):
        pass

    def _reset(self, tensordict=None, **kwargs):
        again = None if tensordict is None else tensordict.get("_reset", None)
        if again is None:
            self.t = torch.zeros_like(self.lengths)
            self.second = torch.zeros_like(self.lengths, dtype=torch.bool)
        else:
            self.t = torch.where(again.squeeze(1), 0, self.t)
            self.second |= again.squeeze(1)
        return self._seen(done=torch.zeros_like(self.second))

    def _step(self, tensordict):
        at = self.t.clamp(max=self.rewards.shape[1] - 1).unsqueeze(1)
        reward = self.rewards.gather(1, at) + tensordict["action"]
        reward = torch.where(self.second.unsqueeze(1), AFTER_THE_END, reward)
        self.t = self.t + 1
        return self._seen(done=self.t >= self.lengths).set("reward", reward)

    def _seen(self, done):
        observation = torch.stack([self.t.float(), torch.arange(len(self.t)).float()], 1)
        return TensorDict({"observation": observation, "done": done.unsqueeze(1)}, self.batch_size)


@pytest.fixture
def scripted():
    return Scripted


UPDATERS = {
    "hard": (HardUpdate, HostHardUpdate, {"value_network_update_interval": 3}),
    "soft": (SoftUpdate, HostSoftUpdate, {"tau": 0.05}),
}


@pytest.fixture(params=UPDATERS)
def updaters(request):
    """Our updater, TorchRL's, and the arguments of both."""
    return UPDATERS[request.param]


@pytest.fixture
def make():
    """A loss of StochDQN whose trunk has 8 features."""

    def make(
        n=10**6,
        head="low_rank",
        double_dqn=False,
        candidates="log",
        codec=None,
        dtype=None,
        delay_value=True,
        **kwargs,
    ):
        trunk = MLP(in_features=3, out_features=8, num_cells=[8], activate_last_layer=True)
        network = StochQNetwork(trunk, codec or n, head=head)
        if dtype is not None:
            network.to(dtype)
        return StochDQNLoss(
            StochQValueActor(network, candidates=candidates, **kwargs),
            double_dqn=double_dqn,
            delay_value=delay_value,
        )

    return make


@pytest.fixture
def batch():
    """Transitions of an environment of n actions."""

    def batch(size, n):
        data = TensorDict({}, [size])
        data["observation"] = torch.randn(size, 3)
        data["action"] = torch.randint(n, (size,))
        data["next", "observation"] = torch.randn(size, 3)
        data["next", "reward"] = torch.randn(size, 1)
        data["next", "done"] = data["next", "terminated"] = torch.zeros(size, 1, dtype=torch.bool)
        return data

    return batch


@pytest.fixture
def update():
    """All of an update; its loss."""

    def update(loss, optimizer, updater, data):
        value = loss(data)["loss"]
        optimizer.zero_grad()
        value.backward()
        clip_grad_norm_(loss.parameters(), 10.0)
        optimizer.step()
        updater.step()
        return value.detach()

    return update
